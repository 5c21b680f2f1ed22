"""A frozen linear layer with a low-rank update as one autograd function: what LoRA and DoRA compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftly.kernels.dropout import draw_mask, drop, keep_probability

__all__ = ["low_rank_linear"]


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    scale: Tensor | None = None,
    dropout: float = 0.0,
    again: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Return `scale (x weightᵀ + scaling (drop(x) lora_aᵀ) lora_bᵀ) + bias`, the second product added into the first.

    Kept for the backward pass are `x`, one bit for each of its entries if some are dropped, `drop(x) lora_aᵀ`, the
    weight (unless it can be made again) and the small factors; with `scale` also what it multiplies. `weight` gets no
    gradient.

    Args:
        x: (..., in_features), in the dtype of `weight`.
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        lora_a: (rank, in_features), any float dtype; computed in that of `weight`, like the following ones.
        lora_b: (out_features, rank).
        scaling: see `lora_scaling`.
        scale: (out_features,); None: 1.
        dropout: with which probability an entry of the update's input is dropped, see `keep_probability`.
        again: makes `weight` anew for the backward pass; None: it is kept.

    Returns:
        (..., out_features).
    """
    dtype = weight.dtype
    mask = None
    if dropout > 0:
        keep = keep_probability(dropout)
        mask, scaling = draw_mask(x, keep), scaling / keep
    bias, scale = (None if value is None else value.to(dtype) for value in (bias, scale))
    apply: Callable[..., Tensor] = _LowRankLinear.apply
    return apply(x, weight, bias, lora_a.to(dtype), lora_b.to(dtype), scaling, scale, mask, again)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        scale: Tensor | None,
        mask: Tensor | None,
        again: Callable[[], Tensor] | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if mask is None else drop(rows, mask)
        inner = seen @ lora_a.T
        output = F.linear(rows, weight, bias if scale is None else None).addmm_(inner, lora_b.T, alpha=scaling)
        unscaled = None
        if scale is not None:
            unscaled = output
            output = unscaled * scale if bias is None else torch.addcmul(bias, unscaled, scale)
        kept = weight if again is None else None
        ctx.save_for_backward(rows, inner, kept, lora_a, lora_b, scale, unscaled, mask)
        ctx.scaling, ctx.shape, ctx.again = scaling, x.shape, again
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, lora_a, lora_b, scale, unscaled, mask = ctx.saved_tensors
        for_x, _, for_bias, for_a, for_b, _, for_scale, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_bias = grad.sum(0) if for_bias else None
        grad_scale = (grad * unscaled).sum(0) if for_scale else None
        if scale is not None:
            grad = grad * scale
        grad_inner = (grad @ lora_b).mul_(ctx.scaling)
        grad_x = grad @ (weight if ctx.again is None else ctx.again()) if for_x else None
        if grad_x is not None and mask is None:
            grad_x.addmm_(grad_inner, lora_a)
        elif grad_x is not None:
            grad_x.add_(drop(grad_inner @ lora_a, mask))
        seen = rows if mask is None or not for_a else drop(rows, mask)
        return (
            None if grad_x is None else grad_x.view(ctx.shape),
            None,
            grad_bias,
            grad_inner.T @ seen if for_a else None,
            (grad.T @ inner).mul_(ctx.scaling) if for_b else None,
            None,
            grad_scale,
            None,
            None,
        )
