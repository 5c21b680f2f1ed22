"""A linear layer as methods see it: its size and its weight, whatever class it is of and wherever it is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.injection.devices import in_memory
from peftly.injection.layers import OriginalForward
from peftly.injection.quantized_layers import QuantizedForward
from peftly.kernels import is_quantized, unpacked

__all__ = ["FusibleWeight", "features", "fusible_weight", "whole_weight"]


def features(layer: Any) -> tuple[int, int]:
    """Return (out_features, in_features). A quantised `nn.Linear` packs its weight, whose shape does not tell."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    in_features, out_features = layer.weight.shape  # of a Conv1D and of an embedding alike
    return out_features, in_features


class FusibleWeight(NamedTuple):
    """A weight whose product with a layer's input may be fused with others.

    Attributes:
        value: (out_features, in_features), in the dtype of the input.
        again: makes it anew for the backward pass, where it is not kept because the layer is quantised; else None.
    """

    value: Tensor
    again: Callable[[], Tensor] | None = None


def fusible_weight(layer: Any, inner: Any, x: Tensor) -> FusibleWeight | None:
    """Return the layer's weight if its product with `x` may be fused, else None."""
    if not isinstance(inner, OriginalForward) or torch.is_autocast_enabled(x.device.type):
        return None
    if isinstance(inner.replaced, QuantizedForward):
        unpack = partial(unpacked, layer, x.dtype)
        return FusibleWeight(unpack(), unpack) if inner.replaced.dtype(x) == x.dtype else None
    if layer.weight.dtype != x.dtype or layer.weight.requires_grad:
        return None
    if layer.bias is not None and layer.bias.requires_grad:
        return None
    if inner.is_plain(nn.Linear):
        return FusibleWeight(layer.weight)
    return FusibleWeight(layer.weight.T) if inner.is_plain(Conv1D) else None


def whole_weight(layer: Any) -> Tensor:
    """Return the weight of a linear layer as (out_features, in_features), unpacked if the layer is quantised."""
    if is_quantized(layer):
        return unpacked(layer)
    with in_memory(layer):
        weight: Tensor = layer.weight
    return weight.T if isinstance(layer, Conv1D) else weight
