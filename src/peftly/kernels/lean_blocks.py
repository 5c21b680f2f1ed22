"""Frozen blocks that keep less for the backward pass: the same outputs to the last bit, the same gradient to rounding.

transformers' RMSNorm keeps its input as a copy in fp32, and its gated feed-forward layer `silu(gate)` beside `gate` and
`up`: a quarter of all that a training step of a Llama in bf16 holds (`docs/log.md`). Here they keep what came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["rms_norm", "silu_product"]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return `weight * x / sqrt(mean(x²) + epsilon)`, normalised in fp32 (arXiv:1910.07467).

    Args:
        x: (..., width); kept for the backward pass, with one number for each of its rows.
        weight: (width,); gets no gradient.
        epsilon: under the root.

    Returns:
        (..., width), what transformers' Llama makes of it.
    """
    apply: Callable[..., Tensor] = _RMSNorm.apply
    return apply(x, weight, epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, inverse, weight)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, weight = ctx.saved_tensors
        normal = x.float().mul_(inverse) if x.dtype != torch.float32 else x * inverse
        grad = (grad * weight).to(x.dtype).float()
        along = (grad * normal).mean(-1, keepdim=True)
        return torch.addcmul(grad, normal, along, value=-1).mul_(inverse).to(x.dtype), None, None


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, and keep both for the backward pass, but not `silu(gate)` (arXiv:2002.05202).

    Args:
        gate, up: (..., width).

    Returns:
        (..., width).
    """
    apply: Callable[..., Tensor] = _SiLUProduct.apply
    return apply(gate, up)


class _SiLUProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        for_gate, for_up = ctx.needs_input_grad
        return (
            torch.ops.aten.silu_backward((grad * up).to(gate.dtype), gate) if for_gate else None,
            F.silu(gate) * grad if for_up else None,
        )
