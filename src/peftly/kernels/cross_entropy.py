"""Cross-entropy of a few rows of logits at a time."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["row_losses"]

_CHUNK_ELEMENTS = 2**20


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(logits)[target] of every row, (count, vocabulary) and (count,) -> (count,) in fp32.

    Works through a few rows at a time and keeps nothing but the logits in their own dtype, so that neither the forward
    nor the backward pass holds all logits in fp32.
    """
    return cast(Tensor, _RowLosses.apply(logits, targets.to(logits.device)))  # type: ignore[no-untyped-call]


class _RowLosses(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - onehot(target), from nothing but the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = logits.new_empty(len(targets), dtype=_wide(logits))
        for part in _chunks(logits):
            likely = logits[part].log_softmax(-1, dtype=losses.dtype)
            losses[part] = -likely.gather(1, targets[part, None]).squeeze(1)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            wide = logits[part].softmax(-1, dtype=_wide(logits))
            wide[torch.arange(len(wide), device=wide.device), targets[part]] -= 1
            torch.mul(wide, upstream[part, None], out=gradient[part])
        return gradient, None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor) -> Iterator[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
