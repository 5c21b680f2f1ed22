"""Parts of a conversation that a chat template does not show, although it takes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftly.data.tools import tool_names

__all__ = ["hidden_context", "hidden_parts", "is_shown"]

Messages = Sequence[Mapping[str, Any]]


def hidden_context(messages: Messages, is_trained: Sequence[bool], text: str) -> list[tuple[str, str]]:
    """Return a finding about the first message in front of the trained turns that a text does not show.

    Templates leave out the reasoning and, on purpose, parts of earlier turns of the assistant, whose calls alone count.

    Args:
        messages: the conversation.
        is_trained: whether each message is a turn that is trained.
        text: text of the conversation.
    """

    def is_hidden(message: Mapping[str, Any]) -> bool:
        if message["role"] == "assistant":
            return any(name not in text for name in tool_names(message.get("tool_calls", ())))
        return not is_shown(message["content"], text)

    hidden = (i for i, m in enumerate(messages) if not is_trained[i] and is_hidden(m))
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
