"""Cross-entropy of logits, computed for a few tokens at a time."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["token_cross_entropy"]

_CHUNK_ELEMENTS = 2**20
"""Logits that are held in fp32 at a time."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy `-log softmax(logits)[target]` of each token.

    Only the logits are saved for the backward pass, in their own dtype. Both passes work on a few tokens at a time and
    never hold all logits in fp32.

    Args:
        logits: (count, vocabulary).
        targets: token ids, (count,).

    Returns:
        (count,), in fp32 (float64 for logits in float64).
    """
    return cast(Tensor, _TokenCrossEntropy.apply(logits, targets.to(logits.device)))  # type: ignore[no-untyped-call]


class _TokenCrossEntropy(torch.autograd.Function):
    """The gradient is `softmax(logits) - onehot(target)`, computed again from the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = logits.new_empty(len(targets), dtype=_wide_dtype(logits))
        for chunk in _chunks(logits):
            log_probabilities = logits[chunk].log_softmax(-1, dtype=losses.dtype)
            losses[chunk] = -log_probabilities.gather(1, targets[chunk, None]).squeeze(1)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for chunk in _chunks(logits):
            difference = logits[chunk].softmax(-1, dtype=_wide_dtype(logits))
            difference[torch.arange(len(difference), device=difference.device), targets[chunk]] -= 1
            torch.mul(difference, grad[chunk, None], out=grad_logits[chunk])
        return grad_logits, None


def _wide_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor) -> Iterator[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
