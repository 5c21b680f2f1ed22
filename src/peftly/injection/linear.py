"""Size and weight of a linear layer, for every class of linear layers, quantised and offloaded ones included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.adapted_forward import OriginalForward
from peftly.injection.devices import in_memory
from peftly.injection.quantized_layers import QuantizedForward
from peftly.kernels import dequantized_weight, is_quantized

__all__ = ["FusibleWeight", "features", "fusible_weight", "is_foreign", "whole_weight"]


def features(layer: Any) -> tuple[int, int]:
    """Return (out_features, in_features) of an `nn.Linear`, a `Conv1D` or an `nn.Embedding`.

    The weight of a quantised `nn.Linear` is stored in another shape, so the attributes of the layer are read instead.
    """
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    in_features, out_features = layer.weight.shape  # of a Conv1D and of an embedding alike
    return out_features, in_features


class FusibleWeight(NamedTuple):
    """Weight of a linear layer that a fused kernel may multiply in place of the layer.

    Attributes:
        value: (out_features, in_features), in the dtype of the input.
        recompute: function that dequantises the weight again in the backward pass; None for a layer that is not
            quantised, whose weight is saved.
    """

    value: Tensor
    recompute: Callable[[], Tensor] | None = None


def fusible_weight(layer: Any, inner: Any, x: Tensor) -> FusibleWeight | None:
    """Return the weight of `layer` if a fused kernel may multiply `x` by it, else None.

    Args:
        layer: the linear layer.
        inner: the forward inside the adapter: an `OriginalForward`, or the forward of another adapter.
        x: (..., in_features).

    Returns:
        None under autocast, if another adapter or a replaced forward computes the output, if the dtypes differ, or if
        the parameters of the layer are trained.
    """
    if not isinstance(inner, OriginalForward) or torch.is_autocast_enabled(x.device.type):
        return None
    if isinstance(inner.replaced, QuantizedForward):
        dequantize = partial(dequantized_weight, layer, x.dtype)
        return FusibleWeight(dequantize(), dequantize) if inner.replaced.dtype(x) == x.dtype else None
    weight = layer.weight
    if weight.dtype != x.dtype or weight.requires_grad or is_foreign(weight):
        return None
    if layer.bias is not None and layer.bias.requires_grad:
        return None
    if inner.is_plain(nn.Linear):
        return FusibleWeight(weight)
    return FusibleWeight(weight.T) if inner.is_plain(Conv1D) else None


def is_foreign(weight: Tensor) -> bool:
    """Return whether a weight is of a tensor class of another library, such as the quantised tensors of torchao.

    Such a weight can be multiplied by its layer. Its elements cannot be read or replaced as those of other tensors.
    """
    kind = type(weight)  # isinstance is true for any tensor that was made a parameter
    return kind is not Tensor and not issubclass(kind, (DTensor, nn.Parameter))


def whole_weight(layer: Any) -> Tensor:
    """Return the weight of a linear layer as (out_features, in_features), dequantised if the layer is quantised.

    Raises:
        MethodError: the weight is of a class of another library that cannot be dequantised.
    """
    if is_quantized(layer):
        return dequantized_weight(layer)
    with in_memory(layer):
        weight: Tensor = layer.weight
    if is_foreign(weight):
        kind = type(weight).__name__
        try:
            weight = weight.dequantize()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise MethodError(
                f"the weight of {layer} is a {kind}, whose values cannot be read ({error}); use method lora"
            ) from None
    return weight.T if isinstance(layer, Conv1D) else weight
