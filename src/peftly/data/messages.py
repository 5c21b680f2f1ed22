"""The messages of a conversation, as the rows of a file spell them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftly.data.readers import describe
from peftly.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = ["messages_of"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def messages_of(row: Mapping[str, Any], name: str, place: str) -> tuple[dict[str, Any], ...]:
    """Return the conversation in a field as messages with `role` and `content`.

    Both spellings are read: `role` and `content` (other keys are handed on to the template), `from` and `value`.

    Raises:
        DataError: the field is missing or empty, or a message in it lacks a part.
    """
    turns = row.get(name)
    if not isinstance(turns, list) or not turns:
        found = "no messages" if turns == [] else describe(turns) if name in row else "nothing"
        raise DataError(f"{place}: field {name!r} holds {found} where a list of messages is needed")
    return tuple(_message(turn, f"{place}: message {number}") for number, turn in enumerate(turns, start=1))


def _message(turn: object, place: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place} is {describe(turn)}; expected an object with 'role' and 'content'")
    role_key, text_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role, content = turn.get(role_key), turn.get(text_key)
    if not isinstance(role, str) or not isinstance(content, str):
        lacking, value = (role_key, role) if not isinstance(role, str) else (text_key, content)
        raise DataError(f"{place}: {lacking!r} is {describe(value)} where a text is needed")
    if role_key == "from":
        if role not in _SHAREGPT_ROLES:
            raise DataError(f"{place} is from {role!r}; known are {', '.join(map(repr, _SHAREGPT_ROLES))}")
        return {"role": _SHAREGPT_ROLES[role], "content": content}
    return {key: value for key, value in turn.items() if value is not None}
