"""Frozen blocks that keep less for the backward pass: the same outputs to the last bit, the same gradient to rounding.

transformers' RMSNorm keeps its input as a copy in fp32, and its gated feed-forward layer `silu(gate)` beside `gate` and
`up`: a quarter of all that a training step of a Llama in bf16 holds (`docs/log.md`). Here they keep what came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftly.methods._layers import CHANGES

__all__ = ["lean_blocks", "rms_norm", "silu_product"]


@contextmanager
def lean_blocks(model: nn.Module) -> Iterator[None]:
    """Let the frozen RMSNorms and gated feed-forward layers of a model keep less; afterwards they are as before.

    Which layers those are is found by what their classes compute, not by name. One that an adapter changes, or whose
    `forward` somebody has replaced, is left alone.
    """
    lean: list[Any] = []
    try:
        for layer in model.modules():
            if forward := _lean_forward(layer):
                layer.forward = partial(forward, layer)
                lean.append(layer)
        yield
    finally:
        for layer in lean:
            del layer.forward


def _lean_forward(layer: Any) -> Callable[[Any, Tensor], Tensor] | None:
    kind: Any = type(layer)
    activation: Any = type(getattr(layer, "act_fn", None))
    if hasattr(layer, CHANGES) or "forward" in vars(layer):
        return None
    if _is_rms_norm(kind) and not layer.weight.requires_grad:
        return _norm
    if _is_gated(kind) and _is_silu(activation):
        return _feed_forward
    return None


def _norm(layer: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, layer.weight, layer.variance_epsilon)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    output: Tensor = layer.down_proj(silu_product(layer.gate_proj(x), layer.up_proj(x)))
    return output


@cache
def _is_rms_norm(kind: Any) -> bool:
    """Whether a class computes `_norm`, tried on a stand-in for its instances, in every mixture of dtypes."""
    weight = torch.linspace(-2, 3, 8)
    layers = [SimpleNamespace(weight=weight.to(dtype), variance_epsilon=1e-3) for dtype in _DTYPES]
    return all(_computes(kind, layer, _norm) for layer in layers)


@cache
def _is_gated(kind: Any) -> bool:
    """Whether a class computes `_feed_forward`, likewise."""
    layer = SimpleNamespace(act_fn=F.silu, gate_proj=torch.sin, up_proj=torch.exp, down_proj=torch.tanh)
    return _computes(kind, layer, _feed_forward)


@cache
def _is_silu(kind: Any) -> bool:
    """Whether a class computes SiLU, likewise."""
    return _computes(kind, SimpleNamespace(inplace=False), lambda _, x: F.silu(x))


_DTYPES = torch.bfloat16, torch.float32


def _computes(kind: Any, layer: Any, forward: Callable[[Any, Tensor], Tensor]) -> bool:
    for dtype in _DTYPES:
        probe = torch.linspace(-3, 4, 40, dtype=dtype).view(1, 5, 8)
        try:
            found = kind.forward(layer, probe)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False  # it wants what the stand-in does not have, so it is something else
        wanted = forward(layer, probe)
        if not isinstance(found, Tensor) or found.dtype != wanted.dtype or not torch.equal(found, wanted):
            return False
    return True


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
