"""Attention of short examples by plain products: the faster way to train in bf16 on a CPU.

Torch's fused kernel goes without the matrix of weights, which is what long examples need. Its backward pass on a CPU
has no fast products in bf16, though, and takes five times as long as this for a tweet (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["is_short", "short_attention"]

_LONGEST = 512
"""Keys up to which it is no slower."""


def is_short(query: Tensor, key: Tensor) -> bool:
    """Whether `short_attention` is the faster way, which it is for what is trained in bf16 on a CPU."""
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    return trained and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= _LONGEST


def short_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Return `softmax(scaling query keyᵀ) value`, with scores and softmax in fp32 (float64 for such a query).

    Heads that share a key head are one tall matrix of queries, so that no key is copied. Kept for the backward pass are
    what comes in and the weights, in the dtype of `value`.

    Args:
        query: (rows, heads, queries, head_dim).
        key, value: (rows, key heads, keys, head_dim); as many heads share each as there are more.
        seen: which keys a query sees, (rows or 1, 1, queries or 1, keys).
        scaling: of the scores.

    Returns:
        (rows, heads, queries, head_dim).
    """
    # The lowest number and not -inf: a query behind an example's end may see nothing, and is no NaN then.
    wide = torch.promote_types(query.dtype, torch.float32)
    bias = query.new_zeros(seen.shape, dtype=wide).masked_fill_(~seen, torch.finfo(wide).min)
    by_key_head = query.reshape(*key.shape[:2], -1, query.shape[3])
    apply: Callable[..., Tensor] = _ShortAttention.apply
    return apply(by_key_head, key, value, bias, scaling, query.shape[2]).view(*query.shape[:3], -1)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, queries: int
    ) -> Tensor:
        wide = bias.dtype
        scores = (query.to(wide) * scaling) @ key.to(wide).transpose(2, 3)
        scores.view(len(scores), -1, queries, scores.shape[3]).add_(bias)
        weights = scores.softmax(-1).to(value.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scaling = scaling
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        grad_weights = grad @ value.transpose(2, 3)
        # Torch's own derivative of softmax, which sums in fp32.
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
        return grad_scores @ key, grad_scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ grad, None, None, None
