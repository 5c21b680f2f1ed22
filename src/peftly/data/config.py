"""Settings of the data of a run."""

from pydantic import Field, field_validator

from peftly.data.chat_template import read_chat_template
from peftly.settings import Seed, Settings

__all__ = ["DataConfig"]


class DataConfig(Settings):
    """Files of a run, and settings of the conversion from rows to token ids. Immutable; an unknown key is an error.

    Attributes:
        train: training rows: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`), a folder written by
            the `datasets` library's `save_to_disk`, or the id of a data set on the Hub.
        validation: validation rows, as for `train`. None: the validation split of the data set `train`, otherwise a
            part of `train`.
        test: test rows, as for `train`. None: the test split of the data set `train`, otherwise no test rows.
        template: template of the prompt, such as "Tweet text : {text} Label :". `{prompt:3}` marks the position of
            three virtual tokens of a method with `position: template`. None: template of the detected row format.
        target: name of the field to learn. None: guessed and reported.
        chat_template: chat template of conversations: its text, or a file with it. None: the tokenizer's own. The text
            is stored with the adapter, and the tokenizer of the adapted model has it.
        max_length: maximum number of tokens of an example.
        validation_fraction: fraction of `train` that becomes validation rows if there are no others; 0 for none.
        seed: random seed of the choice of these validation rows.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    template: str | None = None
    target: str | None = None
    chat_template: str | None = None
    max_length: int = Field(default=512, ge=2)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    seed: Seed = 0

    @field_validator("chat_template")
    @classmethod
    def _read_chat_template(cls, value: str | None) -> str | None:
        return None if value is None else read_chat_template(value)
