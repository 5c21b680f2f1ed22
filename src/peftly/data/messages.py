"""Conversations in the rows of a file, in the spellings of chat messages and of ShareGPT."""

from collections.abc import Mapping
from typing import Any

from peftly.data.rows import describe
from peftly.errors import DataError

__all__ = ["messages_field"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def messages_field(row: Mapping[str, Any], field: str, location: str) -> tuple[dict[str, Any], ...]:
    """Return the conversation in a field as messages with `role` and `content`.

    Two spellings are read: `role` and `content` (other keys are passed to the chat template), and `from` and `value`.

    Args:
        row: fields and values.
        field: name of the field.
        location: location of the row, for error messages.

    Raises:
        DataError: the field is missing or empty, or a message lacks a role or a content.
    """
    messages = row.get(field)
    if not isinstance(messages, list) or not messages:
        value = "no messages" if messages == [] else describe(messages) if field in row else "nothing"
        raise DataError(f"{location}: field {field!r} holds {value} where a list of messages is needed")
    return tuple(_message(message, f"{location}: message {number}") for number, message in enumerate(messages, start=1))


def _message(message: object, location: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"{location} is {describe(message)}; expected an object with 'role' and 'content'")
    is_sharegpt = "from" in message and "role" not in message
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    role, content = message.get(role_key), message.get(content_key)
    if not isinstance(role, str) or not isinstance(content, str):
        key, value = (role_key, role) if not isinstance(role, str) else (content_key, content)
        raise DataError(f"{location}: {key!r} is {describe(value)} where a text is needed")
    if is_sharegpt:
        if role not in _SHAREGPT_ROLES:
            raise DataError(f"{location} is from {role!r}; known are {', '.join(map(repr, _SHAREGPT_ROLES))}")
        return {"role": _SHAREGPT_ROLES[role], "content": content}
    return {key: value for key, value in message.items() if value is not None}
