"""The text of a conversation with its token ids, and the number of tokens of its prefixes."""

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTokens"]


class ChatTokens:
    """The text of a conversation with its token ids.

    Attributes:
        ids: the token ids.
    """

    def __init__(self, text: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Tokenize the text.

        Args:
            text: text of the conversation.
            tokenizer: tokenizer of the base.
        """
        self._text, self._tokenizer = text, tokenizer
        is_fast = bool(tokenizer.is_fast)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=is_fast, verbose=False)
        self.ids: list[int] = list(encoded["input_ids"])
        # Tokens from which on the text is tokenized as if it began there: a tokenizer splits a text at special tokens.
        added = tokenizer.added_tokens_decoder
        special = {number: token.content for number, token in added.items() if token.special and not token.single_word}
        self._indices, self._starts, self._ends = [0], [0], [0]
        for index, (start, end) in enumerate(encoded["offset_mapping"] if is_fast else ()):
            if text[start:end] == special.get(self.ids[index]):
                self._indices.append(index)
                self._starts.append(start)
                self._ends.append(end)

    def prefix_length(self, prefix: str) -> int | None:
        """Return the number of tokens of a text, or None if they are not the first tokens of the conversation.

        Only the part of the prefix after its last special token is tokenized, since a conversation has many prefixes.

        Args:
            prefix: the text.
        """
        last = bisect_right(self._ends, len(prefix)) - 1 if self._text.startswith(prefix) else 0
        start, rest = self._indices[last], prefix[self._starts[last] :]
        ids = self._tokenizer(rest, add_special_tokens=False, verbose=False)["input_ids"]
        end = start + len(ids)
        return end if self.ids[start:end] == ids else None
