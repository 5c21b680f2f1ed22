"""Tools and calls of tools in conversations, in the spellings of OpenAI, Hugging Face, LLaMA-Factory and ms-swift."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from peftly.data.rows import describe
from peftly.errors import DataError

__all__ = ["TOOL_FIELDS", "tool_calls", "tool_names", "tools_field", "without_nulls"]

TOOL_FIELDS = ("tools", "functions")
"""Fields of a row that can hold the tools of a conversation."""


def tools_field(row: Mapping[str, Any], location: str) -> tuple[dict[str, Any], ...]:
    """Return the tools of a row in OpenAI's spelling: `{"type": "function", "function": {"name": ...}}`.

    The field `tools`, or the older `functions`, holds a list of tools, or this list as JSON text. A tool can be written
    without the object around its function. Nulls, which Parquet adds to nested fields, are left out.

    Args:
        row: fields and values.
        location: location of the row, for error messages.

    Raises:
        DataError: a tool is not an object with a name.
    """
    field = next((name for name in TOOL_FIELDS if row.get(name) not in (None, "", [])), None)
    if field is None:
        return ()
    listed = _parsed(row[field], f"{location}: field {field!r}")
    if isinstance(listed, Mapping):
        listed = [listed]
    if not isinstance(listed, list | None):
        raise DataError(f"{location}: field {field!r} holds {describe(listed)} where a list of tools is needed")
    tools = []
    for number, item in enumerate(listed or [], start=1):
        tool = without_nulls(_parsed(item, f"{location}: tool {number}"))
        if isinstance(tool, dict) and "name" in tool:
            tool = {"type": "function", "function": tool}
        if not isinstance(tool, dict) or not (isinstance(tool.get("function"), dict) and tool["function"].get("name")):
            raise DataError(f"{location}: tool {number} is {describe(tool)} without a name; give each tool its 'name'")
        tools.append(tool)
    return tuple(tools)


def tool_names(tools: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the functions of tools, or of calls of tools."""
    return [str(tool["function"]["name"]) for tool in tools]


def tool_calls(value: object, location: str) -> list[dict[str, Any]]:
    """Return calls of tools in OpenAI's spelling: `{"type": "function", "function": {"name": ..., "arguments": ...}}`.

    Args:
        value: a call or a list of calls, or JSON text of either. A call can be written without the object around its
            name and arguments. Arguments stay as they are written: an object, or JSON text. A call of nulls alone, as
            Parquet files have it in messages without a call, is left out.
        location: location of the message, for error messages.

    Raises:
        DataError: a call is not an object with a name.
    """
    listed = _parsed(value, f"{location}: the call of a tool")
    calls = []
    for item in listed if isinstance(listed, list) else [listed]:
        call = without_nulls(_parsed(item, f"{location}: the call of a tool"))
        if call in (None, {}, {"function": {}}):
            continue
        if isinstance(call, dict) and "function" not in call and "name" in call:
            outer = {key: call[key] for key in ("id",) if key in call}
            call = {**outer, "type": "function", "function": {k: v for k, v in call.items() if k not in ("id", "type")}}
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{location}: a call of a tool is {describe(call)} without a name; give each its 'name'")
        calls.append({**call, "function": {"arguments": {}, **function}})
    return calls


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of its objects that hold null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _parsed(value: object, name: str) -> Any:
    """Return a value, or the value of its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON ({error})") from None
