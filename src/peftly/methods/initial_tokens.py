"""Token ids from which the parameters of a prompt or a prefix start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.errors import MethodError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMON_TOKENS", "common_tokens", "repeated", "token_ids"]

COMMON_TOKENS = 5000
"""Number of most common tokens from which initial tokens are drawn, as in section 3.2 of arXiv:2104.08691."""


def token_ids(tokenizer: PreTrainedTokenizerBase | None, text: str) -> list[int]:
    """Return the token ids of `text` as they are inside a longer text, with a space before it.

    Raises:
        MethodError: the text has no tokens.
    """
    assert tokenizer is not None
    ids: list[int] = tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodError(f"{text!r} has no tokens to start from; give some words")
    return ids


def repeated(ids: list[int], count: int) -> Tensor:
    """Return `count` token ids, (count,): `ids`, repeated and cut to length."""
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


def common_tokens(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> Tensor:
    """Return ids of common tokens that are whole words, (at most `COMMON_TOKENS`,).

    Vocabularies that are built by merges number their tokens by falling frequency.

    Args:
        tokenizer: tokenizer of the model; None: the first ids of the vocabulary are returned.
        vocabulary: number of token ids of the model.
    """
    if tokenizer is None:
        return torch.arange(min(COMMON_TOKENS, vocabulary))
    size = min(len(tokenizer), vocabulary)
    special = set(tokenizer.all_special_ids)
    texts = {id_: tokenizer.decode([id_]).strip() for id_ in range(min(size, 4 * COMMON_TOKENS))}
    words = [id_ for id_, text in texts.items() if id_ not in special and len(text) > 1 and text.isalpha()]
    return torch.tensor(words[:COMMON_TOKENS] or sorted(set(range(size)) - special)[:COMMON_TOKENS])
