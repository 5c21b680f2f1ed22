"""Rows whose targets are to be predicted: their prompts without the target, and their targets where they have them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from peftly.data.fields import completion_field, is_missing, label_field, words_and_tags
from peftly.data.formats import RowFormat
from peftly.data.messages import has_opening, whole_conversation
from peftly.data.readers import read
from peftly.data.rows import Rows, join_rows, quoted
from peftly.data.sources import DataSource, is_list_of_paths, read_rows
from peftly.data.types import Example
from peftly.errors import DataError

__all__ = ["check_prompt_fields", "read_prompt_rows", "row_prompt", "row_target"]

_SPLITS = ("test", "validation", "valid", "dev")
"""Splits of a data set in the order of choice, before its only or first one."""


def read_prompt_rows(source: DataSource) -> Rows:
    """Read the rows to predict: of a data set with splits the test split, or else the validation split.

    Args:
        source: file, folder or Hub id, a list of these, or rows in memory; see `load_data`.

    Raises:
        DataError: a source has the wrong kind, cannot be read, or has no rows.
    """
    if isinstance(source, str | os.PathLike):
        return _chosen(read(os.fspath(source)))
    if is_list_of_paths(source):
        return join_rows([_chosen(read(os.fspath(path))) for path in cast("Sequence[str]", source)])
    return read_rows(source)


def _chosen(splits: Mapping[str, Rows]) -> Rows:
    return splits[next((name for name in _SPLITS if name in splits), next(iter(splits)))]


def check_prompt_fields(rows: Rows, row_format: RowFormat) -> None:
    """Check that some row has each field of the prompts.

    Raises:
        DataError: no row has one of the fields, as in a file of another kind.
    """
    if row_format.kind == "chat":
        needed: Sequence[str] = (
            () if any(has_opening(row, row_format.target) for row in rows.rows[:1]) else (row_format.target,)
        )
    else:
        needed = [name for name in row_format.input_fields if name not in _optional(row_format)]
    missing = [name for name in needed if name not in rows.fields]
    if missing:
        raise DataError(
            f"{rows.name}: the prompts need the field {quoted(missing)}, which no row has; the rows have "
            f"{quoted(rows.fields)}"
        )


def _optional(row_format: RowFormat) -> tuple[str, ...]:
    """Return the fields that a row need not have; training leaves out the line of an empty context, too."""
    return (*row_format.optional_fields, *(["context"] if row_format.kind == "alpaca" else []))


def row_prompt(row_format: RowFormat, row: Mapping[str, Any], location: str) -> Example | None:
    """Return the prompt of a row; the row need not have a target.

    The prompt of a conversation is all its messages, without the assistant's turn at the end if there is one.

    Args:
        row_format: format of the rows.
        row: fields and values.
        location: location of the row, for error messages.

    Returns:
        The prompt; None for a row that gives the model nothing to read: a field has no value, all its texts are blank,
        or nothing comes before the assistant's turn.

    Raises:
        DataError: a field holds another kind of value than training reads.
    """
    if row_format.kind == "chat":
        return _conversation_prompt(row_format, row, location)
    optional, names = _optional(row_format), row_format.input_fields
    if any(row.get(name) is None for name in names if name not in optional):
        return None
    if all(is_missing(row.get(name)) or row[name] == [] for name in names if name not in ("history", "system")):
        return None
    return row_format.format_prompt(row, location=location)


def _conversation_prompt(row_format: RowFormat, row: Mapping[str, Any], location: str) -> Example | None:
    row = _with_messages(row_format, row)
    if is_missing(row.get(row_format.target)) or row[row_format.target] == []:
        return None
    messages, tools, _, _ = whole_conversation(row, row_format.target, location)
    messages = messages[: _prompt_length(messages)]
    if not any(message["role"] not in ("system", "developer") for message in messages):
        return None
    return Example(messages=messages, tools=tools)


def _with_messages(row_format: RowFormat, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row whose messages are all in `prompt`, as in TRL's data sets, with these as its messages."""
    if not is_missing(row.get(row_format.target)) or not has_opening(row, row_format.target):
        return row
    return {**{name: value for name, value in row.items() if name != "prompt"}, row_format.target: row["prompt"]}


def _prompt_length(messages: Sequence[Mapping[str, Any]]) -> int:
    return len(messages) - int(messages[-1]["role"] == "assistant")


def row_target(row_format: RowFormat, row: Mapping[str, Any], location: str) -> str | tuple[str, ...] | None:
    """Return the target of a row as text, or its tags; None for a row without a target that can be compared.

    Args:
        row_format, row, location: as for `row_prompt`.
    """
    if row_format.kind == "text":
        return None
    try:
        if row_format.kind == "chat":
            return _last_turn(row_format, row, location)
        if is_missing(row.get(row_format.target)):
            return None
        if row_format.kind == "tags":
            tags = words_and_tags(row, row_format.words_field, row_format.target, location)[1]
            return tags if set(tags) <= set(row_format.labels) else None
        if row_format.kind == "label":
            label = label_field(row, row_format.target, location)
            return label if label in row_format.labels else None
        return completion_field(row, row_format.target, location).strip()
    except DataError:
        return None


def _last_turn(row_format: RowFormat, row: Mapping[str, Any], location: str) -> str | None:
    messages = whole_conversation(_with_messages(row_format, row), row_format.target, location).messages
    return messages[-1]["content"].strip() or None if messages[-1]["role"] == "assistant" else None
