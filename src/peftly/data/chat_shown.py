"""Parts of a conversation that a chat template does not show, although it takes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["hidden_context", "hidden_parts", "is_shown"]

Messages = Sequence[Mapping[str, Any]]


def hidden_context(messages: Messages, text: str) -> list[tuple[str, str]]:
    """Return a finding about the first message of another role than the assistant that a text does not show.

    Args:
        messages: the conversation.
        text: text of the conversation.
    """
    hidden = (i for i, m in enumerate(messages) if m["role"] != "assistant" and not is_shown(m["content"], text))
    index = next(hidden, None)
    return [] if index is None else [("hidden_messages", f"message {index + 1} ({messages[index]['role']})")]


def hidden_parts(message: Mapping[str, Any], words: str) -> list[str]:
    """Return the names of the parts of an assistant's message that the words of its turn do not show.

    Args:
        message: the message.
        words: text of the turn.
    """
    answer = (message["content"] or "").rpartition("</think>")[2]
    parts = {"content": answer, "reasoning": message.get("reasoning_content")}
    return [name for name, part in parts.items() if isinstance(part, str) and not is_shown(part, words)]


def is_shown(part: str, text: str) -> bool:
    """Return whether a text shows a part, as it is, as JSON, or with other blanks."""
    bare = part.strip()
    if bare in text:
        return True
    if any(json.dumps(bare, ensure_ascii=ascii_only)[1:-1] in text for ascii_only in (False, True)):
        return True
    return "".join(bare.split()) in "".join(text.split())
