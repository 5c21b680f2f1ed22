"""Conversations in rows, in the spellings of OpenAI, Hugging Face, ShareGPT, LLaMA-Factory, axolotl and ms-swift.

Every conversation becomes a list of messages as chat templates read them: `role`, `content` as text, and `tool_calls`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peftly.data.rows import describe, quoted
from peftly.data.tools import TOOL_FIELDS, tool_calls, tools_field, without_nulls
from peftly.errors import DataError

__all__ = [
    "CONVERSATION_FIELDS",
    "ROLES",
    "Conversation",
    "are_messages",
    "conversation_field",
    "has_opening",
    "read_messages",
    "whole_conversation",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages after reading. Another role is read only if the chat template names it."""

CONVERSATION_FIELDS = {"system", *TOOL_FIELDS}
"""Fields of a row, besides the messages, that belong to a conversation."""

_SPELLINGS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        ("function", "observation", "ipython", "tool_response", "tool_result", "function_response"), "tool"
    ),
}
_CALL_ROLES = ("function_call", "tool_call", "tool_calls")
_TRAIN_KEYS = ("weight", "train", "training", "train_on_turn", "loss", "loss_scale")
_DETAIL_KEYS = ("train_detail", "training_detail")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_MEDIA = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
"""Fields with images and the like, in the spelling of LLaMA-Factory and ms-swift, and their marks in the texts."""

_TEXT_PARTS = ("text", "input_text", "output_text")


class Conversation(NamedTuple):
    """A conversation of a row.

    Attributes:
        messages: the messages.
        tools: tools in OpenAI's spelling.
        untrained: indices of the assistant's turns that are not trained.
        findings: defects, as of `Example`.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    untrained: tuple[int, ...]
    findings: tuple[tuple[str, str], ...]


def conversation_field(row: Mapping[str, Any], field: str, location: str) -> Conversation:
    """Return the conversation in a field of a row, up to the last turn that is trained.

    Args:
        row, field, location: as for `whole_conversation`.

    Raises:
        DataError: the field is missing or empty, or a message or a tool cannot be read.
    """
    messages, tools, untrained, findings = whole_conversation(row, field, location)
    not_trained = set(untrained)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    end = max((index + 1 for index in turns if index not in not_trained), default=len(messages))
    if any(message["role"] != "assistant" for message in messages[end:]):
        findings = (*findings, ("messages_after_last_turn", f"message {end + 1}"))
    return Conversation(messages[:end], tools, tuple(index for index in untrained if index < end), findings)


def whole_conversation(row: Mapping[str, Any], field: str, location: str) -> Conversation:
    """Return all messages of the conversation in a field of a row, and the parts of it in other fields of the row.

    Args:
        row: fields and values. `tools` or `functions` holds tools, and `system` a system message. A list of messages in
            `prompt` comes before the messages of another field, such as `completion`, and is not trained.
        field: name of the field with the messages: a list, or JSON text of a list.
        location: location of the row, for error messages.

    Raises:
        DataError: the field is missing or empty, or a message or a tool cannot be read.
    """
    value = row.get(field)
    messages = _list_in(value) if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages:
        held = "no messages" if messages == [] else describe(value) if field in row else "nothing"
        raise DataError(f"{location}: field {field!r} holds {held} where a list of messages is needed")
    read, untrained, findings = read_messages(messages, location)
    for name, mark in _MEDIA.items():
        if row.get(name) and any(mark in message["content"] for message in read):
            raise DataError(
                f"{location}: the field {name!r} belongs to {mark} in the messages; peftly trains on text alone, so "
                "leave such rows out"
            )
    if has_opening(row, field):
        opening, _, _ = read_messages(row["prompt"], f"{location}: prompt")
        turns = [index for index, message in enumerate(opening) if message["role"] == "assistant"]
        read, untrained = [*opening, *read], [*turns, *(index + len(opening) for index in untrained)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and read[0]["role"] != "system":
        read = [{"role": "system", "content": system}, *read]
        untrained = [index + 1 for index in untrained]
    elif isinstance(system, str) and system.strip() not in ("", read[0]["content"].strip()):
        findings.append(("two_systems", ""))
    for index, message in enumerate(read):
        if message["role"] == "assistant" and index not in untrained and _is_empty(message):
            untrained.append(index)
            findings.append(("empty_turns", f"message {index + 1}"))
    return Conversation(tuple(read), tools_field(row, location), tuple(untrained), tuple(findings))


def has_opening(row: Mapping[str, Any], field: str) -> bool:
    """Return whether `prompt` holds the messages in front of those in another field, as TRL's data sets have them."""
    return field not in ("prompt", "messages", "conversations") and are_messages(row.get("prompt"))


def are_messages(value: object) -> bool:
    """Return whether a value is a list of messages, by its first element."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and bool({"role", "from"} & {*value[0]})
    )


def read_messages(
    messages: Sequence[Any], location: str
) -> tuple[list[dict[str, Any]], list[int], list[tuple[str, str]]]:
    """Return messages as chat templates read them.

    Args:
        messages: messages with `role` and `content`, or with `from` and `value`.
        location: location of the conversation, for error messages.

    Returns:
        The messages; the indices of the assistant's turns that are marked as not trained; and findings.

    Raises:
        DataError: a message has no role, content of another kind than text, or a mark that is neither true nor false.
    """
    read: list[dict[str, Any]] = []
    untrained: list[int] = []
    findings: list[tuple[str, str]] = []
    for number, message in enumerate(messages, start=1):
        here = f"{location}: message {number}" if location else f"message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{here} is {describe(message)}; expected an object with 'role' and 'content'")
        if len(message) == 2 and message.get("role") in ROLES and isinstance(message.get("content"), str):
            read.append({"role": message["role"], "content": message["content"]})
            continue
        mark, new = _mark(message, here), _message(message, here)
        if _is_call(message) and read and read[-1]["role"] == "assistant":  # a part of the same turn
            read[-1] = {**read[-1], "tool_calls": [*read[-1].get("tool_calls", ()), *new["tool_calls"]]}
        else:
            read.append(new)
        if new["role"] == "assistant" and (key := _unread_mark(message)):
            findings.append(("unread_marks", f"message {number}: {key!r}"))
        if new["role"] != "assistant":
            if mark:
                findings.append(("marked_other_roles", f"message {number} ({new['role']})"))
        elif mark is False and untrained[-1:] != [len(read) - 1]:
            untrained.append(len(read) - 1)
    if _order_results(read):
        findings.append(("reordered_results", ""))
    return read, untrained, findings


def _order_results(messages: list[dict[str, Any]]) -> bool:
    """Sort the results of parallel calls in the order of the calls, since many chat templates show no ids.

    Args:
        messages: messages from `_message`, sorted in place.

    Returns:
        Whether the order has changed.
    """
    is_changed = False
    for index, message in enumerate(messages):
        calls = [call["id"] for call in message.get("tool_calls", ()) if "id" in call]
        end = next((i for i in range(index + 1, len(messages)) if messages[i]["role"] != "tool"), len(messages))
        results = messages[index + 1 : end]
        if len(calls) < 2 or not all(result.get("tool_call_id") in calls for result in results):
            continue
        positions = [calls.index(result["tool_call_id"]) for result in results]
        ordered = [results[number] for number in sorted(range(len(results)), key=positions.__getitem__)]
        is_changed = is_changed or ordered != results
        messages[index + 1 : end] = ordered
    return is_changed


def _list_in(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _keys(message: Mapping[str, Any]) -> tuple[str, str]:
    role_key = "from" if "from" in message and "role" not in message else "role"
    content_key = "value" if "value" in message and "content" not in message else "content"
    return role_key, content_key


def _is_call(message: Mapping[str, Any]) -> bool:
    """Return whether a message is nothing but calls of tools, as LLaMA-Factory and ms-swift write them."""
    return str(message.get(_keys(message)[0])).strip().lower() in _CALL_ROLES


def _message(message: Mapping[str, Any], location: str) -> dict[str, Any]:
    role_key, content_key = _keys(message)
    spelled = message.get(role_key)
    if role_key not in message:
        raise DataError(f"{location} has {quoted(message)}; expected 'role' and 'content', or 'from' and 'value'")
    if not isinstance(spelled, str):
        raise DataError(f"{location}: {role_key!r} is {describe(spelled)} where a text is needed")
    used = {role_key, content_key, "function_call", "tool_calls", "refusal", *_TRAIN_KEYS, *_DETAIL_KEYS}
    others = {key: without_nulls(value) for key, value in message.items() if value is not None and key not in used}
    content = message.get(content_key)
    if _is_call(message):
        calls = tool_calls(content if content else message.get("tool_calls"), location)
        return {"role": "assistant", "content": "", "tool_calls": calls, **others}
    role = _SPELLINGS.get(spelled.strip().lower(), spelled)
    new = {"role": role, "content": _text(content, role, content_key, location), **others}
    if role == "assistant":
        new["content"] = new["content"] or str(message.get("refusal") or "")
        calls = [*tool_calls(message.get("tool_calls") or [], location)]
        if message.get("function_call"):
            calls += tool_calls(message["function_call"], location)
        if calls:
            new["tool_calls"] = calls
        reasoning = next((new[key] for key in _REASONING_KEYS if isinstance(new.get(key), str)), None)
        if reasoning is not None:  # templates read either name
            new |= {"reasoning_content": reasoning, "thinking": reasoning}
    return new


def _text(content: object, role: str, key: str, location: str) -> str:
    """Return the text of a message's content: a text, or a list of parts with text."""
    if isinstance(content, str):
        return content
    if content is None and role in ("assistant", "tool"):
        return ""
    if isinstance(content, list):
        return "".join(_text_of_part(part, location) for part in content)
    if isinstance(content, Mapping) and role == "tool":
        return json.dumps(content, ensure_ascii=False)
    raise DataError(f"{location}: {key!r} is {describe(content)} where a text is needed")


def _text_of_part(part: object, location: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else describe(part)
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(f"{location} has a part of type {kind!r}; peftly trains on text alone, so leave such messages out")


def _mark(message: Mapping[str, Any], location: str) -> bool | None:
    """Return whether a message is marked to be trained; None without a mark."""
    for key in _DETAIL_KEYS:
        if message.get(key):
            raise DataError(f"{location} has {key!r}; a turn is trained as a whole or not: mark it 'train': false")
    marks = {key: message[key] for key in _TRAIN_KEYS if message.get(key) is not None}
    for key, value in marks.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"{location}: {key!r} is {value!r}; write 1 or true for a trained turn, else 0 or false")
    return all(marks.values()) if marks else None


def _unread_mark(message: Mapping[str, Any]) -> str | None:
    """Return a key that may be meant as a mark: one with a truth value that peftly does not read."""
    return next((key for key, value in message.items() if isinstance(value, bool) and key not in _TRAIN_KEYS), None)


def _is_empty(message: Mapping[str, Any]) -> bool:
    return not (
        message["content"].strip() or message.get("tool_calls") or str(message.get("reasoning_content") or "").strip()
    )
