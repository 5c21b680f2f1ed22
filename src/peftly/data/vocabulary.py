"""Special tokens of a tokenizer, tokens of a text without them, and positions of tokens in a text."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary", "check_has_offsets", "is_proper_prefix", "token_positions"]


_SPECIAL_TOKENS = (
    *("<s>", "</s>", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"),
)
"""Special tokens of common models, which their chat templates write into texts."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with the special tokens that it adds to a text.

    Attributes:
        tokenizer: tokenizer of the base.
        front: ids of the special tokens that the tokenizer puts before a text, such as a start token or [CLS].
        end: id of the token that ends a text.
        special: ids of all special tokens.
        back: ids of the special tokens that the tokenizer puts after a text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    front: list[int]
    end: int | None
    special: frozenset[int]
    back: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Find the special tokens by tokenizing a sample text, which works for every family of tokenizers."""
        body = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        full = tokenizer("a", verbose=False)["input_ids"]
        # A tokenizer that changes the sample between its special tokens counts as one without special tokens.
        start = next((index for index in range(len(full)) if full[index : index + len(body)] == body), None)
        front, back = ([], []) if start is None else (list(full[:start]), full[start + len(body) :])
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        special = frozenset([*tokenizer.all_special_ids, *added])
        return cls(tokenizer, front, end, special, tuple(back))

    @cached_property
    def front_text(self) -> str:
        """Text of the special tokens that the tokenizer puts before a text."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self.front))

    @cached_property
    def end_text(self) -> str:
        """Text of the end token; empty without an end token."""
        return "" if self.end is None else str(self.tokenizer.convert_ids_to_tokens(self.end))

    @cached_property
    def back_text(self) -> str:
        """Text of the special tokens that the tokenizer puts after a text."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(self.back)))

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Pattern of the text of any special token."""
        texts = sorted(filter(None, self.tokenizer.convert_ids_to_tokens(sorted(self.special))), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")

    @cached_property
    def foreign_pattern(self) -> re.Pattern[str]:
        """Pattern of a special token of other models that is several tokens here.

        `<s>` counts at the start of a text and `</s>` at its end or in front of `<s>`, since both are marks of HTML.
        """
        unknown = self.tokenizer.unk_token_id
        foreign = [t for t in _SPECIAL_TOKENS if self.tokenizer.convert_tokens_to_ids(t) in (None, unknown)]
        patterns = {"<s>": r"^\s*<s>", "</s>": r"</s>(?=\s*(?:<s>|$))"}
        return re.compile("|".join(patterns.get(token, re.escape(token)) for token in foreign) or "(?!)")

    @cached_property
    def unknown(self) -> int | None:
        """Id of the token of unknown characters; None where this id has another use, as in GPT-2."""
        tokenizer = self.tokenizer
        other_uses = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        return None if tokenizer.unk_token_id in other_uses else tokenizer.unk_token_id

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without end tokens and unknown tokens."""
        known = [token for token in ids if token not in (self.end, self.unknown)]
        text: str = self.tokenizer.decode(known, clean_up_tokenization_spaces=False)
        return text

    def may_lose(self, text: str) -> bool:
        """Return whether the tokenizer may change characters of a text, as tokenizers with a normalizer do."""
        return self._loses_ascii or (self._loses_others and not text.isascii())

    @cached_property
    def _loses_ascii(self) -> bool:
        return self._loses("".join(map(chr, range(33, 127))) + " a\nb\tc")

    @cached_property
    def _loses_others(self) -> bool:
        return self._loses("e\u0301 Ａ ﬁ ™ é 中 🙂")

    def _loses(self, sample: str) -> bool:
        return not set(sample) <= {" ", *self.decoded(self.body(sample))}

    def encoding(self, texts: Sequence[str]) -> Any:
        """Return transformers' encoding of texts, without the special tokens that the tokenizer adds."""
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without the special tokens that the tokenizer adds."""
        ids: list[list[int]] = self.encoding(texts)["input_ids"] if texts else []
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
