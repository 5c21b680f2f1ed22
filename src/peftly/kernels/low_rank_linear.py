"""Frozen linear layer with a low-rank update, for LoRA and DoRA, as one autograd function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peftly.kernels.dropout import draw_mask, drop, keep_probability
from peftly.kernels.transforms import is_transformed, plain_gradients

__all__ = ["low_rank_linear"]

_unsafe_view: Callable[..., Tensor] = torch.ops.aten._unsafe_view.default
"""Tensor in another shape that is not a view: torch lets no caller change a view of an autograd function in place, as
`nn.ReLU(inplace=True)` does. Some outputs of `F.linear` with three dimensions are views."""


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
    recompute_weight: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Return `scale (x weightᵀ + scaling (drop(x) lora_aᵀ) lora_bᵀ) + bias`.

    The second product is accumulated into the first. The tensors saved for the backward pass are `x`, one bit per
    element of `x` with dropout, `drop(x) lora_aᵀ`, the two factors, the weight (unless it is recomputed) and, with
    `scale`, the unscaled output.

    Args:
        x: (..., in_features), in the dtype of `weight`.
        weight: (out_features, in_features); gets no gradient.
        bias: (out_features,) or None.
        lora_a: (rank, in_features), in any floating dtype; like `lora_b`, `bias` and `scale` it is cast to the dtype of
            `weight`.
        lora_b: (out_features, rank).
        scaling: factor of the update, see `lora_scaling`.
        scale: factor of each output feature, (out_features,); None: 1.
        dropout: probability with which an element of the update's input is dropped; see `keep_probability`.
        recompute_weight: function that returns `weight` again in the backward pass; None: `weight` is saved.

    Returns:
        (..., out_features).
    """
    dtype = weight.dtype
    if is_transformed():
        lora_a, lora_b = lora_a.to(dtype), lora_b.to(dtype)
        return _composed(x, weight, bias, lora_a, lora_b, scale, scaling, F.dropout(x, dropout) if dropout else x)
    mask = None
    if dropout > 0:
        keep = keep_probability(dropout)
        mask, scaling = draw_mask(x, keep), scaling / keep
    bias, down, up, scale = (  # `to` takes longer than the comparison
        value if value is None or value.dtype == dtype else value.to(dtype) for value in (bias, lora_a, lora_b, scale)
    )
    apply: Callable[..., Tensor] = _LowRankLinear.apply
    return apply(x, weight, bias, down, up, scaling, scale, mask, recompute_weight)


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor | None,
    scaling: float,
    dropped_x: Tensor,
) -> Tensor:
    """Return the output of `low_rank_linear` by operations of torch."""
    output = F.linear(x, weight) + scaling * F.linear(F.linear(dropped_x, lora_a), lora_b)
    if scale is not None:
        output = output * scale.to(output.dtype)
    return output if bias is None else output + bias.to(output.dtype)


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
        recompute_weight: Callable[[], Tensor] | None,
    ) -> Tensor:
        flat_x = x.reshape(-1, x.shape[-1])
        dropped_x = flat_x if mask is None else drop(flat_x, mask)
        low = dropped_x @ lora_a.T
        output = F.linear(flat_x, weight, bias if scale is None else None).addmm_(low, lora_b.T, alpha=scaling)
        unscaled = None
        if scale is not None:
            unscaled = output
            output = unscaled * scale if bias is None else torch.addcmul(bias, unscaled, scale)
        saved_weight = weight if recompute_weight is None else None
        ctx.save_for_backward(x, low, saved_weight, lora_a, lora_b, scale, unscaled, mask, bias)
        ctx.scaling, ctx.recompute_weight = scaling, recompute_weight
        return output if x.ndim == 2 else _unsafe_view(output, [*x.shape[:-1], output.shape[-1]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        x, low, weight, lora_a, lora_b, scale, unscaled, mask, _ = ctx.saved_tensors
        flat_x = x.reshape(-1, x.shape[-1])
        needs_x, _, needs_bias, needs_a, needs_b, _, needs_scale, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_bias = grad.sum(0) if needs_bias else None
        grad_scale = (grad * unscaled).sum(0) if needs_scale else None
        if scale is not None:
            grad = grad * scale
        grad_low = (grad @ lora_b).mul_(ctx.scaling)
        grad_x = grad @ (weight if ctx.recompute_weight is None else ctx.recompute_weight()) if needs_x else None
        if grad_x is not None and mask is None:
            grad_x.addmm_(grad_low, lora_a)
        elif grad_x is not None:
            grad_x.add_(drop(grad_low @ lora_a, mask))
        dropped_x = flat_x if mask is None or not needs_a else drop(flat_x, mask)
        return (
            None if grad_x is None else grad_x.view(x.shape),
            None,
            grad_bias,
            grad_low.T @ dropped_x if needs_a else None,
            (grad.T @ low).mul_(ctx.scaling) if needs_b else None,
            None,
            grad_scale,
            None,
            None,
        )


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_LowRankLinear` for a backward pass with `create_graph=True`."""
    x, _, weight, lora_a, lora_b, scale, _, mask, bias = ctx.saved_tensors
    frozen = weight if ctx.recompute_weight is None else ctx.recompute_weight()
    kept = None if mask is None else drop(torch.ones_like(x), mask)

    def composed(x: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: Tensor | None) -> Tensor:
        return _composed(x, frozen, bias, lora_a, lora_b, scale, ctx.scaling, x if kept is None else x * kept)

    needs_x, _, needs_bias, needs_a, needs_b, _, needs_scale, *_ = ctx.needs_input_grad
    needed = (needs_x, needs_bias, needs_a, needs_b, needs_scale)
    of_x, of_bias, of_a, of_b, of_scale = plain_gradients(composed, (x, bias, lora_a, lora_b, scale), needed, grad)
    return of_x, None, of_bias, of_a, of_b, None, of_scale, None, None
