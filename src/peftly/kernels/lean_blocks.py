"""RMSNorm and gated SiLU that save only their inputs for the backward pass.

The RMSNorm of transformers saves an fp32 copy of its input, and a gated feed-forward layer saves `silu(gate)` besides
`gate` and `up`. Together they are a quarter of the activations that a training step of a Llama in bf16 saves
(`docs/log.md`). The outputs here are the same to the last bit, and the gradients are the same up to rounding.
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
        x: (..., width); saved for the backward pass, with the inverse root mean square as (..., 1) in fp32.
        weight: (width,); gets no gradient.
        epsilon: constant that is added to the mean square.

    Returns:
        (..., width), with the dtypes and the rounding of `LlamaRMSNorm`.
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
        projection = (grad * normal).mean(-1, keepdim=True)
        return torch.addcmul(grad, normal, projection, value=-1).mul_(inverse).to(x.dtype), None, None


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, as in SwiGLU (arXiv:2002.05202).

    Args:
        gate, up: (..., width); saved for the backward pass.

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
