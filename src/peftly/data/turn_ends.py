"""The end of the assistant's turn in the text of a chat template, which the model learns and generation stops at."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data.chat_template import chat_text
from peftly.data.tools import tool_calls
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TurnEnds", "chat_ends"]

_ANSWER = "Certainly"
_QUESTION: dict[str, Any] = {"role": "user", "content": "Hello"}
_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": tool_calls({"id": "abcdefghi", "name": "look_up", "arguments": {"zone": "CET"}}, "the call"),
}


class ChatEnds(NamedTuple):
    """Ends of the assistant's turns, at which generation stops.

    Attributes:
        ids: ids of tokens.
        texts: texts, where the chat template ends a turn with text that is no token.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]


def chat_ends(tokenizer: "PreTrainedTokenizerBase") -> ChatEnds:
    """Return the ends of the assistant's turns in the tokenizer's chat template, besides the end token of the base.

    Args:
        tokenizer: tokenizer with or without a chat template.
    """
    if not tokenizer.chat_template:
        return ChatEnds((), ())
    ends = TurnEnds(tokenizer)
    call = _rendered([_QUESTION, _CALL], tokenizer) or ""
    texts = [ends.text, ends.in_text(call) if "look_up" in call else ""]
    known = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    return ChatEnds(
        tuple(dict.fromkeys(known[text] for text in texts if text in known)),
        tuple(dict.fromkeys(text for text in texts if text and text not in known)),
    )


class TurnEnds:
    """Finds the end of the assistant's turn in a text of a chat template.

    Attributes:
        special: texts of the special tokens of the tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.special = tuple(dict.fromkeys(filter(None, [*tokenizer.all_special_tokens, *added])))

    @property
    def text(self) -> str:
        """Text with which the chat template ends a turn, such as "<|im_end|>"; empty if it writes none."""
        return self._sample[0]

    @cached_property
    def _sample(self) -> tuple[str, str]:
        """End of a sample turn, and the blanks after a turn that has no end."""
        text = _rendered([_QUESTION, {"role": "assistant", "content": _ANSWER}], self._tokenizer) or ""
        suffix = text[text.rindex(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
        run = _run(suffix, self.special)
        if run:
            return run[-1].end, ""
        added = [token.content for token in self._tokenizer.added_tokens_decoder.values()]
        written = suffix.strip()
        return next(
            (token for token in added if token and written.startswith(token)), written
        ), suffix if not written else ""

    def offset(self, text: str) -> int | None:
        """Return the offset behind the end of the turn that a text ends with; None if the text does not end it.

        Special tokens can be in front of the end, where they close a call of a tool, and behind it, as an end token of
        the whole text. Therefore the end of a turn with text counts, or the end token of the tokenizer.

        Args:
            text: text of a conversation that ends with the assistant's turn.
        """
        run = _run(text, (*self.special, self.text) if self.text else self.special)
        for end in (self.text, self._tokenizer.eos_token):
            if (first := next((one for one in reversed(run) if one.end == end), None)) is not None:
                return first.offset
        return run[0].offset if run else None

    def in_text(self, text: str) -> str:
        """Return the end of the turn that a text ends with, such as "<|im_end|>"; empty without an end."""
        end = self.offset(text)
        found = [one for one in (*self.special, self.text) if end and one and text[:end].endswith(one)]
        return max(found, key=len, default="")

    def without_end(self, text: str) -> str:
        """Return a text without the special tokens at its end, and without the blanks around them."""
        run = _run(text, self.special)
        return text[: run[-1].offset - len(run[-1].end)].rstrip() if run else text.rstrip()

    def without_blanks(self, text: str) -> str:
        """Return a text that ends with a turn without an end, without the blanks that the template adds to the turn."""
        blanks: str = self._sample[1]
        return text.removesuffix(blanks)


class _End(NamedTuple):
    """A special token, and the offset behind it."""

    end: str
    offset: int


def _run(text: str, ends: tuple[str, ...]) -> list[_End]:
    """Return the special tokens at the end of a text, the last one first; there can be blanks around them."""
    run = []
    rest = text.rstrip()
    while ends and rest.endswith(ends):
        end = max((one for one in ends if rest.endswith(one)), key=len)
        run.append(_End(end, len(rest)))
        rest = rest[: -len(end)].rstrip()
    return run


def _rendered(messages: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> str | None:
    try:
        return chat_text(messages, tokenizer)[0]
    except DataError:  # a template can refuse the sample and take the user's messages
        return None
