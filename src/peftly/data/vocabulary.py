"""Special tokens of a tokenizer, tokens of a text without them, and positions of tokens in a text."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary", "check_has_offsets", "is_proper_prefix", "token_positions"]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with the special tokens that it adds to a text.

    Attributes:
        tokenizer: tokenizer of the base.
        front: ids of the special tokens that the tokenizer puts before a text, such as a start token or [CLS].
        end: id of the token that ends a text.
        special: ids of all special tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    front: list[int]
    end: int | None
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Find the special tokens by tokenizing a sample text, which works for every family of tokenizers."""
        body = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        full = tokenizer("a", verbose=False)["input_ids"]
        start = next((index for index in range(len(full)) if full[index : index + len(body)] == body), 0)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        return cls(tokenizer, list(full[:start]), end, frozenset([*tokenizer.all_special_ids, *added]))

    def bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without the special tokens that the tokenizer adds."""
        if not texts:
            return []
        encoding = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoding["input_ids"]
        return ids

    def body(self, text: str) -> list[int]:
        """Return the token ids of one text, without the special tokens that the tokenizer adds."""
        return self.bodies([text])[0]

    def token_positions(self, text: str, offsets: Sequence[int]) -> list[int]:
        """Return the index of the first token at or after each character offset; see the function `token_positions`."""
        if not offsets:
            return []
        check_has_offsets(self.tokenizer)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return token_positions(offsets, (end for _, end in encoding["offset_mapping"]))

    def required_end(self) -> int:
        """Return the id of the end token.

        Raises:
            DataError: the tokenizer has none, so a model cannot learn to stop.
        """
        if self.end is None:
            raise DataError("the tokenizer has no end token, so a model cannot learn to stop; set tokenizer.eos_token")
        return self.end

    def continuation(self, completion: str) -> list[int]:
        """Return the token ids of a completion as they follow another text.

        A text that is tokenized alone may gain tokens: SentencePiece puts a space before the text. Therefore the
        completion is tokenized after an anchor that does not merge with the completion, and the tokens of the anchor
        are removed.
        """
        for anchor in (":", "\n", "a"):
            anchor_ids, joint_ids = self.bodies([anchor, anchor + completion])
            if is_proper_prefix(anchor_ids, joint_ids):
                return joint_ids[len(anchor_ids) :]
        return self.body(completion)


def token_positions(offsets: Sequence[int], token_ends: Iterable[int]) -> list[int]:
    """Return the index of the first token at or after each character offset.

    An offset inside a token gives the index of this token.

    Args:
        offsets: character offsets in a text.
        token_ends: end of each token of the text, in characters.
    """
    # The first tokens may cover no character, such as the space that SentencePiece puts before a text.
    rising_ends = list(accumulate(token_ends, max))
    return [bisect_right(rising_ends, offset) if offset else 0 for offset in offsets]


def check_has_offsets(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError for a tokenizer that does not report the character offsets of its tokens."""
    if not tokenizer.is_fast:
        raise DataError("marks in a template need a fast tokenizer (tokenizer.json), which knows each token's offsets")


def is_proper_prefix(head: list[int], joint: list[int]) -> bool:
    """Return whether `joint` begins with `head` and is longer.

    Two unknown characters can merge into one unknown token; then `joint` is not longer, and has no tokens after `head`.
    """
    return len(joint) > len(head) and joint[: len(head)] == head
