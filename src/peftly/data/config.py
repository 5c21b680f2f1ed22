"""Settings of the data of a run."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from peftly.data.chat_template import read_chat_template
from peftly.data.hub import spelling_of
from peftly.data.presets import PRESETS
from peftly.settings import Seed, Settings

__all__ = ["AddSpace", "DataConfig", "LongTexts", "Source"]

AddSpace = bool | Literal["auto"]
"""Whether a space is added between a prompt and a completion that are written without one."""

LongTexts = Literal["cut", "pieces"]
"""Treatment of plain texts that are longer than the maximum length."""


def _one_or_several(value: object) -> object:
    """Convert a list of one source into the source, and other lists into tuples, without a source twice.

    A mapping names a data set on the Hub; it becomes a text.
    """
    if isinstance(value, Mapping):
        return spelling_of(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        value = [spelling_of(source) if isinstance(source, Mapping) else source for source in value]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(source, str) for source in value):
        raise ValueError("give a file, a folder or a data set on the Hub, or a list of these")
    for index, source in enumerate(value):
        if source in value[:index]:
            raise ValueError(f"{source} is named twice")
    if len(value) > 1 and "none" in value:
        raise ValueError("none stands alone")
    return value[0] if len(value) == 1 else tuple(value)


Source = Annotated[str | tuple[str, ...], BeforeValidator(_one_or_several)]
"""A file, a folder or a data set on the Hub, or several of them."""


class DataConfig(Settings):
    r"""Files of a run, and settings of the conversion from rows to token ids. Immutable; an unknown key is an error.

    Attributes:
        train: training rows: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`), a folder written by
            the `datasets` library's `save_to_disk`, a data set on the Hub, or a list of these, which are joined. A data
            set on the Hub is `user/name`, or `user/name@revision:configuration[split]` with any of these parts, or a
            mapping with name, config, split and revision.
        validation: validation rows, as for `train`. None: the validation split of the data set `train`, otherwise a
            part of `train`. "none": no validation rows.
        test: test rows, as for `train`. None: the test split of the data set `train`, otherwise no test rows. "none":
            no test rows.
        template: template of the prompt, such as "Tweet text : {text} Label :". `{prompt:3}` marks the position of
            three virtual tokens of a method with `position: template`. In YAML and on the command line, a backslash
            with `n`, `t` or a backslash is a line break, a tab or a backslash. `[\n{input?}]` is a part that
            can be empty. None: template of the detected row format.
        target: name of the field to learn. None: guessed and reported.
        format: named row format with a template of its own, such as "alpaca-human" (`PRESETS`), instead of `template`
            and `chat_template`. None: no such format.
        chat_template: chat template of conversations: its text, or a file with it. None: the tokenizer's own. The text
            is stored with the adapter, and the tokenizer of the adapted model has it.
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

    section: ClassVar[str] = "data"

    train: Source
    validation: Source | None = None
    test: Source | None = None
    template: str | None = None
    target: str | None = None
    format: str | None = None
    chat_template: str | None = None
    max_length: int = Field(default=512, ge=2)
    long_texts: LongTexts = "cut"
    add_space: AddSpace = "auto"
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    seed: Seed = 0

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"there is no such format; there are {', '.join(PRESETS)}")
        if value is not None and info.data.get("template") is not None:
            raise ValueError("a format has its own template, and data.template is given; leave out one of them")
        return value

    @field_validator("chat_template")
    @classmethod
    def _read_chat_template(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("format") is not None:
            raise ValueError("data.format has its own templates; leave out one of them")
        return None if value is None else read_chat_template(value)

    @property
    def sources(self) -> list[str]:
        """Files, folders and Hub ids of all splits."""
        given = [self.train, *filter(None, [self.validation, self.test])]
        names = [name for source in given for name in ([source] if isinstance(source, str) else source)]
        return [name for name in names if name != "none"]
