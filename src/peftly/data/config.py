"""Settings of the data of a run."""

from typing import Literal

from pydantic import Field

from peftly.settings import Seed, Settings

__all__ = ["AddSpace", "DataConfig", "LongTexts"]

AddSpace = bool | Literal["auto"]
"""Whether a space is added between a prompt and a completion that are written without one."""

LongTexts = Literal["cut", "pieces"]
"""Treatment of plain texts that are longer than the maximum length."""


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
        max_length: maximum number of tokens of an example.
        long_texts: plain texts that are longer are "cut" to `max_length`, or become several examples ("pieces") without
            the loss of a token.
        add_space: whether a space is added between a prompt and a completion that are written without one and would
            merge into one word. "auto": after a cue such as "Label:", "Why?" or "x =", and after a template that ends
            with a word; other completions follow their prompts as written, so that a completion can go on inside a
            word, a path or a tag. See `needs_space`.
        validation_fraction: fraction of `train` that becomes validation rows if there are no others; 0 for none.
        seed: random seed of the choice of these validation rows.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    template: str | None = None
    target: str | None = None
    max_length: int = Field(default=512, ge=2)
    long_texts: LongTexts = "cut"
    add_space: AddSpace = "auto"
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    seed: Seed = 0
