"""Settings of the data of a run."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from peftly.data.chat_template import read_chat_template
from peftly.data.hub import HubSource, spelling_of
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


_ONE_SOURCE: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {key: {"type": ["string", "null"]} for key in HubSource._fields}
            | {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}
_JSON_SCHEMA = {"anyOf": [*_ONE_SOURCE["anyOf"], {"type": "array", "items": _ONE_SOURCE, "minItems": 1}]}

Source = Annotated[str | tuple[str, ...], BeforeValidator(_one_or_several), WithJsonSchema(_JSON_SCHEMA)]
"""A file, a folder or a data set on the Hub, or several of them."""


class DataConfig(Settings):
    """Files of a run, and settings of the conversion from rows to token ids. Immutable; an unknown key is an error."""

    section: ClassVar[str] = "data"

    train: Source
    """Training rows: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`), a folder written by
    `save_to_disk` of the `datasets` library, a data set on the Hub, or a list of these, which are joined. A data set on
    the Hub is `user/name`, or `user/name@revision:configuration[split]` with any of these parts, or a mapping with
    `name`, `config`, `split` and `revision`."""
    validation: Source | None = None
    """Validation rows, in the forms of `train`; "none": no validation rows. None: the validation split of the data set
    in `train`, else a part of `train` (see `validation_fraction`)."""
    test: Source | None = None
    """Test rows for the final scores, in the forms of `train`; "none": no test rows. None: the test split of the data
    set in `train`, else no test rows."""
    template: str | None = None
    r"""Template of the prompt with the fields of a row, such as "Tweet text : {text} Label :". `{prompt:3}` marks the
    position of three virtual tokens of a method with `position: template`. `[\n{input?}]` is a part that can be empty.
    In YAML and on the command line, `\n` is a line break, `\t` a tab and `\\` a backslash. None: the template of the
    row format that is detected."""
    target: str | None = None
    """Field to learn. None: guessed from the rows, and reported."""
    format: str | None = Field(default=None, json_schema_extra={"enum": [*PRESETS, None]})
    """Named row format with templates of its own, such as "alpaca-human", instead of `template` and `chat_template`.
    None: no such format."""
    chat_template: str | None = None
    """Chat template of conversations: a file, or the text of the template. It is stored with the adapter, and the
    tokenizer of the adapted model has it. None: the template of the base's tokenizer."""
    max_length: int = Field(default=512, ge=2)
    """Maximum number of tokens of an example."""
    long_texts: LongTexts = "cut"
    """Treatment of plain texts that are longer than `max_length`: they are cut, or become several examples (pieces)
    without the loss of a token."""
    add_space: AddSpace = "auto"
    """Add a space between a prompt and a completion that are written without one and would merge into one word. `auto`:
    after a cue such as "Label:", "Why?" or "x =", and after a template that ends with a word; other completions follow
    their prompts as written, so that a completion can go on inside a word, a path or a tag."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of `train` that becomes the validation rows if no others are given; 0: none."""
    seed: Seed = 0
    """Random seed of the choice of these validation rows."""

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
