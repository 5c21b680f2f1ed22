"""Conversations with fewer messages, or shorter ones, that fit a number of tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftly.data.truncation import largest_fit

__all__ = ["newest_exchanges", "shorten_contents"]

Messages = Sequence[Mapping[str, Any]]


def newest_exchanges(messages: Messages, fits: Callable[[Messages], bool]) -> list[int]:
    """Return the indices of the messages that stay if as many of the oldest exchanges as needed are left out.

    System messages at the start and the last exchange stay, whether they fit or not.

    Args:
        messages: the conversation.
        fits: whether messages fit.
    """
    is_first = (index for index, message in enumerate(messages) if message["role"] not in ("system", "developer"))
    first = next(is_first, 0)
    later_questions = [index for index in range(first + 1, len(messages)) if messages[index]["role"] == "user"]
    starts = [*reversed(later_questions), first]

    def from_start(number: int) -> list[int]:
        return [*range(first), *range(starts[number], len(messages))]

    def start_fits(number: int) -> bool:
        return fits([messages[index] for index in from_start(number)])

    return from_start(largest_fit(len(starts) - 1, start_fits) or 0)


def shorten_contents(messages: Messages, fits: Callable[[Messages], bool]) -> Messages:
    """Return the messages with every content that is not the assistant's cut to the same number of characters.

    Args:
        messages: the conversation.
        fits: whether messages fit.
    """

    def cut_to(max_characters: int) -> Messages:
        return [m if m["role"] == "assistant" else {**m, "content": m["content"][:max_characters]} for m in messages]

    longest = max((len(m["content"]) for m in messages if m["role"] != "assistant"), default=0)
    return cut_to(largest_fit(longest, lambda size: fits(cut_to(size))) or 0)
