"""A tokenizer seen from outside: what it puts around a text, the text's own tokens, and where in the text they are."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary", "check_knows_places", "goes_on", "token_places"]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer puts around a text, and the text's own tokens.

    Attributes:
        tokenizer: the tokenizer itself.
        front: special tokens that it puts before any text, such as a start token or [CLS].
        end: the token that ends a text.
        special: ids of all its special tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    front: list[int]
    end: int | None
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Find these out by asking the tokenizer, whatever family it is of."""
        body = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        full = tokenizer("a", verbose=False)["input_ids"]
        start = next((at for at in range(len(full)) if full[at : at + len(body)] == body), 0)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        return cls(tokenizer, list(full[:start]), end, frozenset([*tokenizer.all_special_ids, *added]))

    def bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's own tokens, without any that the tokenizer puts around it."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def body(self, text: str) -> list[int]:
        """Return one text's own tokens."""
        return self.bodies([text])[0]

    def places(self, text: str, marks: Sequence[int]) -> list[int]:
        """Return in front of which of a text's own tokens each mark stands; see `token_places`."""
        if not marks:
            return []
        check_knows_places(self.tokenizer)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return token_places(marks, (end for _, end in found["offset_mapping"]))

    def required_end(self) -> int:
        """Return the end token, or raise DataError: without one a model cannot learn to stop."""
        if self.end is None:
            raise DataError("the tokenizer has no end token, so a model cannot learn to stop; set tokenizer.eos_token")
        return self.end

    def continuation(self, completion: str) -> list[int]:
        """Return a completion's tokens as they come after some other text, whichever it is.

        On its own a text may gain tokens: SentencePiece puts a space before it. So it is tokenised after an anchor that
        does not grow together with it, and the anchor's tokens are taken off.
        """
        for anchor in (":", "\n", "a"):
            before, both = self.bodies([anchor, anchor + completion])
            if goes_on(before, both):
                return both[len(before) :]
        return self.body(completion)


def token_places(marks: Sequence[int], ends: Iterable[int]) -> list[int]:
    """Return in front of which token of a text each mark stands; a token that a mark falls into is behind it.

    Args:
        marks: in front of which character.
        ends: where each token ends, in characters.
    """
    # The first tokens may be of no character, as SentencePiece's space before a text.
    rising = list(accumulate(ends, max))
    return [bisect_right(rising, mark) if mark else 0 for mark in marks]


def check_knows_places(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that does not know where in a text its tokens stand."""
    if not tokenizer.is_fast:
        raise DataError("marks in a template need a fast tokenizer (tokenizer.json), which knows each token's place")


def goes_on(head: list[int], joint: list[int]) -> bool:
    """Say whether `joint` is `head` and more; two unknown words, fused into one token, are nothing more."""
    return len(joint) > len(head) and joint[: len(head)] == head
