"""Dropout with masks of one bit per element, of which a CPU draws 64 at a time as one random 64-bit integer.

A mask depends only on the default generator of its device. When the state of this generator is restored (in a resumed
run, in a checkpointed block), the same mask is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peftly.kernels.transforms import is_transformed

__all__ = ["draw_mask", "drop", "dropout", "keep_probability"]

_BINARY_DIGITS = 16
_STEPS: int = 2**_BINARY_DIGITS
_ALL_INTEGERS = (-(2**63), None)  # arguments of `random_`: the range of int64
_INTEGER_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keep_probability(probability: float) -> float:
    """Return the probability with which an element is kept: the nearest multiple of 2⁻¹⁶ to 1 - probability, except 0.

    The value differs from 1 - probability by at most 2⁻¹⁷ (2⁻¹⁶ for a probability near 1). Elements that are kept are
    divided by this value and not by 1 - probability, so the expectation is exact.

    Args:
        probability: dropout probability, in [0, 1).
    """
    return max(1, round((1 - probability) * _STEPS)) / _STEPS


def draw_mask(x: Tensor, keep: float) -> Tensor:
    """Return a mask that keeps each element of `x` with probability `keep`, independently of the others.

    Args:
        x: tensor of any shape, of which only the size and the device are used.
        keep: value of `keep_probability`.

    Returns:
        On a CPU one bit per element as int64, (ceil(x.numel() / 64),); on other devices booleans, in the shape of `x`.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(keep)
    count = -(-x.numel() // 64)
    digits = [round(keep * _STEPS) >> digit & 1 for digit in range(_BINARY_DIGITS)]
    if not any(digits):  # keep is 1
        return torch.full((count,), -1)
    # A bit that is 1 with probability p becomes 1 with probability (1 + p) / 2 by `or` with a fair bit, and with p / 2
    # by `and`. So the binary digits of `keep`, from the last to the first, build this probability from fair bits.
    # `bernoulli_` draws one random number per element and takes six times as long.
    first = digits.index(1)
    mask, fair_bits = (torch.empty(count, dtype=torch.int64) for _ in range(2))
    mask.random_(*_ALL_INTEGERS)
    for digit in digits[first + 1 :]:
        fair_bits.random_(*_ALL_INTEGERS)
        mask = mask.bitwise_or_(fair_bits) if digit else mask.bitwise_and_(fair_bits)
    return mask


def drop(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with the elements set to 0 that `mask` drops; the kept elements are not scaled.

    Args:
        x: tensor of any shape.
        mask: result of `draw_mask` for a tensor with the shape of `x`.
    """
    if mask.dtype == torch.bool:
        return x * mask.view(x.shape)
    dtype = _INTEGER_DTYPES[x.element_size()]
    width = 8 * x.element_size()
    # Each bit becomes an integer with the width of an element, all ones or all zeros. The loop over the bits is the
    # outer one, so that the inner loop is long and has a single shift.
    shifts = torch.arange(width, dtype=dtype)[:, None]
    bit_masks = (mask.view(dtype) << shifts).bitwise_right_shift_(width - 1).view(-1)[: x.numel()]
    return bit_masks.view(x.shape).bitwise_and_(x.view(dtype)).view(x.dtype)


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Return the same as `torch.nn.functional.dropout`, with a mask from `draw_mask`.

    Args:
        x: tensor of any shape.
        probability: probability with which an element is dropped, in [0, 1); see `keep_probability`.
        training: whether to drop elements at all.
    """
    if not training or probability == 0:
        return x
    if is_transformed():
        return F.dropout(x, probability)
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the backward pass is built
            return grad * drop(torch.ones_like(grad), mask) / ctx.keep, None, None
        return drop(grad, mask).div_(ctx.keep), None, None
