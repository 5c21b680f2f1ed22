"""Frozen RMSNorms and gated feed-forward layers of a model that save fewer tensors for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from peftly.injection.layers import LAYER_ADAPTERS
from peftly.injection.lean_classes import GATED_MLPS, RMS_NORMS
from peftly.kernels import rms_norm, silu_product

__all__ = ["lean_blocks"]

_SILU_CLASSES = (nn.SiLU, type(ACT2FN["silu"]))


@contextmanager
def lean_blocks(model: nn.Module) -> Iterator[None]:
    """Replace the `forward` of frozen RMSNorms and gated feed-forward layers while the block runs.

    The outputs are the same to the last bit, and the gradients to rounding. A layer keeps its own `forward` if its
    class is not listed in `lean_classes`, if an adapter changes the layer, or if its `forward` was replaced.
    """
    replaced: list[Any] = []
    try:
        for layer in model.modules():
            if forward := _lean_forward(layer):
                layer.forward = partial(forward, layer)
                replaced.append(layer)
        yield
    finally:
        for layer in replaced:
            del layer.forward


def _lean_forward(layer: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """Return the function that replaces the forward of `layer`, or None if the layer keeps its own."""
    if hasattr(layer, LAYER_ADAPTERS) or "forward" in vars(layer):
        return None
    owner = _class_of_forward(type(layer))
    if owner in RMS_NORMS and not layer.weight.requires_grad:
        return _norm
    if owner in GATED_MLPS and type(layer.act_fn) in _SILU_CLASSES:
        return _feed_forward
    return None


def _class_of_forward(layer_class: type[nn.Module]) -> str:
    """Return the qualified name of the class in whose body `forward` was written.

    That class is not `layer_class` if the method is inherited, or if somebody has assigned another function to the
    class.
    """
    forward = layer_class.forward
    return f"{forward.__module__}.{getattr(forward, '__qualname__', '')}".removesuffix(".forward")


def _norm(layer: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, layer.weight, layer.variance_epsilon)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    output: Tensor = layer.down_proj(silu_product(layer.gate_proj(x), layer.up_proj(x)))
    return output
