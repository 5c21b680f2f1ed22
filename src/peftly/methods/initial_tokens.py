"""Token ids from which the parameters of a prompt or a prefix start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from peftly.errors import MethodError
from peftly.methods.method import Size
from peftly.utils import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMON_TOKENS", "Length", "check_init_text", "common_tokens", "repeated", "text_ids", "with_length"]

COMMON_TOKENS = 5000
"""Number of most common tokens from which initial tokens are drawn, as in section 3.2 of arXiv:2104.08691."""

Length = Size | Literal["text"]
"""A number of virtual tokens; `text`: as many as `init_text` has tokens."""


def check_init_text(init: str | None, init_text: str | None, length: int | str) -> None:
    """Check the settings of a prompt or a prefix that may start from a text.

    Raises:
        ValueError: one of the settings is not used, or lacks another.
    """
    if init == "text" and not (init_text or "").strip():
        raise ValueError("init: text needs init_text, the text to start from")
    if init_text is not None and init not in (None, "text"):
        raise ValueError(f"init_text is not used by init: {init}; leave one of them out")
    if length == "text" and not (init_text or "").strip():
        raise ValueError("num_virtual_tokens: text needs init_text, the text whose tokens are counted")


def with_length(config: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """Return settings whose `num_virtual_tokens` is a number: in place of `text`, that of the tokens of `init_text`.

    Raises:
        MethodError: there is no tokenizer, or the text has no tokens.
    """
    if config.num_virtual_tokens != "text":
        return config
    return config.model_copy(update={"num_virtual_tokens": len(text_ids(tokenizer, config.init_text))})


def text_ids(tokenizer: PreTrainedTokenizerBase | None, text: str) -> list[int]:
    """Return the token ids of a text as it is written, without special tokens.

    Raises:
        MethodError: there is no tokenizer, or the text has no tokens.
    """
    if tokenizer is None:
        raise MethodError("init: text starts from tokens: pass the tokenizer of the base")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodError(f"{text!r} has no tokens to start from; give some words")
    return ids


def repeated(ids: list[int], count: int, source: str = "") -> Tensor:
    """Return `count` token ids, (count,): `ids`, repeated or cut.

    Args:
        ids: at least one token id.
        count: number of virtual tokens.
        source: name of the text for a warning that its tokens are repeated or cut; empty: no warning.
    """
    if source and len(ids) != count:
        change = f"its last {len(ids) - count} are not used" if len(ids) > count else "its tokens are repeated"
        tokens = f"{len(ids)} token{'s' * (len(ids) > 1)}"
        advice = "; for all of them once, set num_virtual_tokens to text" if source == "init_text" else ""
        warn(
            f"{source} has {tokens} and num_virtual_tokens is {count}: {change}{advice}",
            stacklevel=7,
        )
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
