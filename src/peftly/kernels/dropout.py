"""Dropout with masks that cost a CPU little: one bit an entry, cut out of random words 64 entries at a time.

A mask is drawn from torch's default generator of its device and from nothing else, so whoever restores that generator's
state (a resumed run, a checkpointed block) gets the same mask again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["draw_mask", "drop", "dropout", "keep_probability"]

_PLACES = 16
_STEPS: int = 2**_PLACES
_ANY = (-(2**63), None)  # for `random_`: all that 64 bits can be
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keep_probability(probability: float) -> float:
    """Return the multiple of 2⁻¹⁶ that is next to 1 - probability and not 0: with what an entry is really kept.

    It is at most 2⁻¹⁷ off (2⁻¹⁶ where next to nothing is kept). What is kept is divided by this value and not by
    1 - probability, so that the expectation is exact.
    """
    return max(1, round((1 - probability) * _STEPS)) / _STEPS


def draw_mask(x: Tensor, keep: float) -> Tensor:
    """Return which entries of `x` are kept, each with probability `keep` and independently of the others.

    Args:
        x: any shape; read for its size and device.
        keep: from `keep_probability`.

    Returns:
        On a CPU one bit an entry, int64, (x.numel() / 64 rounded up,); elsewhere booleans, in the shape of `x`.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(keep)
    count = -(-x.numel() // 64)
    digits = [round(keep * _STEPS) >> place & 1 for place in range(_PLACES)]
    if not any(digits):  # keep is 1
        return torch.full((count,), -1)
    # A bit that is set with probability p is set with (1 + p) / 2 after `or` with a fair one and with p / 2 after
    # `and`: the binary digits of `keep`, from the last to the first, make it out of fair ones. `bernoulli_` draws a
    # number for every entry and takes six times as long.
    first = digits.index(1)
    kept, fair = (torch.empty(count, dtype=torch.int64) for _ in range(2))
    kept.random_(*_ANY)
    for digit in digits[first + 1 :]:
        fair.random_(*_ANY)
        kept = kept.bitwise_or_(fair) if digit else kept.bitwise_and_(fair)
    return kept


def drop(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with 0 where the mask of a tensor of its shape says so, and the rest as it is."""
    if mask.dtype == torch.bool:
        return x * mask.view(x.shape)
    kind = _INTEGERS[x.element_size()]
    width = 8 * x.element_size()
    # Every bit becomes an integer as wide as an entry, all ones or all zeros. Bit by bit and not word by word, so that
    # the inner loop is long and has one shift for all.
    shifts = torch.arange(width, dtype=kind)[:, None]
    wide = (mask.view(kind) << shifts).bitwise_right_shift_(width - 1).view(-1)[: x.numel()]
    return wide.view(x.shape).bitwise_and_(x.view(kind)).view(x.dtype)


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Return what `torch.nn.functional.dropout` does, with a mask from `draw_mask`."""
    if not training or probability == 0:
        return x
    apply: Callable[..., Tensor] = _Dropout.apply
    keep = keep_probability(probability)
    return apply(x, draw_mask(x, keep), keep)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, keep: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.keep = keep
        return drop(x, mask).div_(keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return drop(grad, mask).div_(ctx.keep), None, None
