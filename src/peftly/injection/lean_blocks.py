"""Frozen blocks of a model that save fewer tensors for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.injection.layers import LAYER_ADAPTERS
from peftly.kernels import rms_norm, silu_product

__all__ = ["lean_blocks"]


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
    if hasattr(layer, LAYER_ADAPTERS) or "forward" in vars(layer):
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
