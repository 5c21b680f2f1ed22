"""Prompts in the format that a run was trained with, from the options of a command."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.data import Example, RowFormat
    from peftly.runs import OpenRun

__all__ = [
    "Inputs",
    "description",
    "field_options",
    "input_options",
    "is_classifier",
    "messages",
    "open_fields",
    "prompt_of",
    "prompt_row",
    "read_fields",
    "text_fields",
    "text_prompt",
    "with_system",
]


class Inputs(NamedTuple):
    """Values of the options with the inputs of a model; see the help of `peftly generate`."""

    text: str | None = None
    prompt: str | None = None
    field: Mapping[str, str] = {}
    pair: str | None = None
    system: str | None = None

    def check(self, allowed: Collection[str], reason: str) -> None:
        """Raise ConfigError if --field, --pair or --system is given and not in `allowed`."""
        for name in ("field", "pair", "system"):
            if getattr(self, name) and name not in allowed:
                raise ConfigError(f"--{name} does not fit: {reason}")


def read_fields(options: Sequence[str] | None) -> dict[str, str]:
    """Return the names and values of `--field` options.

    Raises:
        ConfigError: an option is not of the form NAME=VALUE, or a name occurs twice.
    """
    fields: dict[str, str] = {}
    for option in options or ():
        name, sign, value = option.partition("=")
        if not sign or name in fields:
            reason = "this field is given twice" if name in fields else "this is not of the form NAME=VALUE"
            raise ConfigError(f'--field {option}: {reason}; give each field once, as in --field question="Who?"')
        fields[name] = value
    return fields


def messages(text: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a conversation of a user's message, after a system message if there is one."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": text}]


def prompt_of(opened: "OpenRun", inputs: Inputs, *, is_base: bool) -> "Example | list[dict[str, str]]":
    """Return the prompt of a command: an example, or a conversation.

    Args:
        opened: run, adapter or base.
        inputs: values of the options.
        is_base: whether the model is an untouched base, whose chat template takes a text as a user's message.

    Raises:
        ConfigError: the options do not fit the model.
    """
    from peftly.data import Example

    if inputs.prompt is not None:
        inputs.check({"pair"} if is_classifier(opened) else (), "--prompt is a complete prompt")
        return Example(inputs.prompt, pair=inputs.pair)
    row_format, row = prompt_row(opened, inputs, is_base=is_base)
    if row_format.kind == "chat":
        conversation: list[dict[str, str]] = row[row_format.target]
        return conversation
    return row_format.format_prompt(row)


def prompt_row(opened: "OpenRun", inputs: Inputs, *, is_base: bool) -> "tuple[RowFormat, dict[str, Any]]":
    """Return the row whose prompt the options give, and its row format.

    Args:
        opened, is_base: as for `prompt_of`.
        inputs: values of the options, without --prompt.

    Raises:
        ConfigError: the options do not fit the model.
    """
    from peftly.data import RowFormat

    row_format = opened.row_format
    if row_format is None and is_classifier(opened) and inputs.text is not None:
        inputs.check({"pair"}, "this model records no template")
        pair = None if inputs.pair is None else "text_pair"
        row = {"text": inputs.text} if pair is None else {"text": inputs.text, pair: inputs.pair}
        return RowFormat("completion", "{text}", "label", pair=pair), row
    if row_format.kind == "chat" if row_format else is_base and opened.tokenizer.chat_template:
        inputs.check({"system"}, 'this model answers conversations: give --text "…"')
        row_format = row_format or RowFormat("chat", None, "messages")
        return row_format, {row_format.target: messages(str(inputs.text), inputs.system)}
    if row_format is None:
        chat = ", or use peftly chat" if opened.tokenizer.chat_template else ""
        raise ConfigError(f'this model records no template for --text; give the complete prompt: --prompt "…"{chat}')
    fields = with_system(row_format, inputs.field, inputs.system)
    return row_format, text_fields(row_format, inputs.text, fields, pair=inputs.pair)


def is_classifier(opened: "OpenRun") -> bool:
    """Return whether a model gives labels or tags instead of text."""
    from peftly.models import task_of

    return task_of(opened.model) in ("sequence_classification", "token_classification")


def with_system(row_format: "RowFormat", fields: Mapping[str, Any], system: str | None) -> dict[str, Any]:
    """Return the fields with the system message, for a run that was trained with a template.

    Raises:
        ConfigError: the template has no field "system".
    """
    if system is None:
        return dict(fields)
    if "system" not in row_format.input_fields:
        raise ConfigError(f"--system does not fit: this run learned {description(row_format)}")
    return {**fields, "system": system}


def text_prompt(row_format: "RowFormat", text: str | None, fields: Mapping[str, Any]) -> "Example":
    """Return the prompt of a run that was trained with a template, formatted as in training.

    Args:
        row_format, text, fields: as for `text_fields`.

    Raises:
        ConfigError: as for `text_fields`.
    """
    return row_format.format_prompt(text_fields(row_format, text, fields))


def text_fields(
    row_format: "RowFormat", text: str | None, fields: Mapping[str, Any], *, pair: str | None = None
) -> dict[str, Any]:
    """Return the fields of a prompt of a run that was trained with a template.

    Args:
        row_format: row format of the run, of any kind but "chat".
        text: value of the only field that is not in `fields`; None: `fields` has all of them.
        fields: values of fields by name.
        pair: second text, for a classifier of text pairs.

    Raises:
        ConfigError: a field is missing or unknown, or a text has no field.
    """
    if pair is not None and row_format.pair is None:
        raise ConfigError(f"--pair does not fit: this run learned {description(row_format)}")
    given = dict(fields) if pair is None else {**fields, str(row_format.pair): pair}
    for name in given:
        if name not in row_format.input_fields:
            raise ConfigError(f"--field {name} is no field of this run, which learned {description(row_format)}")
    missing = open_fields(row_format, given)
    if len(missing) != (0 if text is None else 1):
        raise ConfigError(f"this run learned {description(row_format)}; give {input_options(row_format)}")
    if text is not None:
        given[missing[0]] = text
    if row_format.kind == "tags":  # the words of a text are its parts between blanks
        given = {name: value.split() for name, value in given.items()}
    return given


def open_fields(row_format: "RowFormat", given: Collection[str]) -> list[str]:
    """Return the fields of a prompt that need a value and are not among `given`."""
    return [name for name in row_format.input_fields if name not in (*given, *row_format.optional_fields)]


def description(row_format: "RowFormat") -> str:
    """Return what a run learned to answer, for messages: "the template '{question}'"."""
    if row_format.kind in ("chat", "text"):
        return "conversations" if row_format.kind == "chat" else "plain text"
    pair = "" if row_format.pair is None else f" and the second text {row_format.pair!r}"
    return f"the template {row_format.template!r}{pair}"


def input_options(row_format: "RowFormat") -> str:
    """Return the options of `peftly generate` with the inputs of a run, as they are typed."""
    fields = open_fields(row_format, () if row_format.pair is None else (row_format.pair,))
    pair = "" if row_format.pair is None else ' --pair "…"'
    if len(fields) == 1 or row_format.kind == "chat":
        return f'--text "…"{pair}'
    return field_options(fields) + pair


def field_options(fields: Sequence[str]) -> str:
    """Return `--field` options for some fields, as they are typed."""
    return " ".join(f'--field {shlex.quote(name)}="…"' for name in fields)
