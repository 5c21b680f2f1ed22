"""Attention over few keys by plain matrix products, for training in bf16 on a CPU.

The fused kernel of torch does not store the attention weights, which matters for long examples. On a CPU its backward
pass has no fast products in bf16 and takes five times as long as these plain products for a tweet (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["is_short", "short_attention"]

_MAX_KEYS = 512
"""Number of keys up to which the plain products are at least as fast."""


def is_short(query: Tensor, key: Tensor) -> bool:
    """Return whether `short_attention` is faster than the fused kernel of torch: in training, in bf16 on a CPU.

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, key heads, keys, head_dim).
    """
    needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    return needs_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= _MAX_KEYS


def short_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Return `softmax(scaling query keyᵀ) value`, with scores and softmax in fp32 (float64 for a query in float64).

    Query heads that share a key head are stacked into one matrix of queries, so that no key is copied. The tensors
    saved for the backward pass are the inputs and the attention weights, in the dtype of `value`.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, key heads, keys, head_dim); heads is a multiple of key heads.
        mask: true where a query attends to a key, (batch or 1, 1, queries or 1, keys).
        scaling: factor of the scores.

    Returns:
        (batch, heads, queries, head_dim).
    """
    # The lowest finite number and not -inf: a padding query may attend to no key, and must not become NaN.
    wide = torch.promote_types(query.dtype, torch.float32)
    bias = query.new_zeros(mask.shape, dtype=wide).masked_fill_(~mask, torch.finfo(wide).min)
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
        # The derivative of softmax in torch accumulates in fp32.
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
        return grad_scores @ key, grad_scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ grad, None, None, None
