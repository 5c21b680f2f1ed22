"""Linear layers of bitsandbytes with weights in 4 or 8 bits: how to dequantise and to multiply the weights.

A weight is dequantised for one product and not stored. The forward of bitsandbytes' own layers is not used on a CPU,
for two reasons. On CPUs with AVX512-BF16, a 4-bit layer repacks its weight in place when the layer is first called
without gradients, rounds the scales, and returns other outputs from then on. In 8 bits, the output for one batch
element depends on the others, because bitsandbytes searches the whole batch for outliers.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.kernels.transforms import is_transformed

__all__ = [
    "dequantized_linear",
    "dequantized_weight",
    "is_bitsandbytes_layer",
    "is_int8",
    "is_quantized",
    "num_weights",
    "quant_state",
]


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is a linear layer of bitsandbytes with a weight in 4 or 8 bits."""
    weight: Any = getattr(layer, "weight", None)
    if not is_bitsandbytes_layer(layer) or weight is None:
        return False
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def dequantized_weight(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weight of a quantised layer as a new tensor, (out_features, in_features).

    Args:
        layer: layer for which `is_quantized` is true.
        dtype: dtype of the result; None: the dtype of the weight before it was quantised in 4 bits, float32 for 8 bits.
    """
    weight = layer.weight
    if is_int8(layer):
        scales = getattr(weight, "SCB", None)
        scales = layer.state.SCB if scales is None else scales
        int8_weight: Tensor = weight.data * (scales / 127)[:, None]
        return int8_weight.to(dtype or torch.float32)
    state = copy.copy(quant_state(layer))
    state.dtype = dtype or state.dtype
    shape, size = state.shape, state.blocksize
    if shape[-1] % size:
        # bitsandbytes on a CPU reads the wrong scales where a row of the weight is no multiple of the block size.
        count = math.prod(shape)
        state.shape = torch.Size((count // size, size) if count % size == 0 else (1, count))
    values: Tensor = importlib.import_module("bitsandbytes").functional.dequantize_4bit(weight.data, state)
    return values.view(shape)


def dequantized_linear(x: Tensor, dequantize: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """Return `x Wᵀ + bias` for a frozen weight W, which is dequantised here and again in the backward pass.

    Args:
        x: (..., in_features).
        dequantize: function that returns W, (out_features, in_features), in the dtype of `x`.
        bias: (out_features,) or None; gets no gradient.

    Returns:
        (..., out_features).
    """
    if is_transformed():
        return F.linear(x, dequantize(), bias)
    apply: Callable[..., Tensor] = _DequantizedLinear.apply
    return apply(x, dequantize, bias)


class _DequantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dequantize: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.dequantize = dequantize
        with torch.autocast(x.device.type, enabled=False):  # the caller has chosen the dtype
            return F.linear(x, dequantize(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.dequantize(), None, None


def is_bitsandbytes_layer(layer: nn.Module) -> bool:
    """Return whether a layer is a `Linear4bit` or a `Linear8bitLt`; the weight need not be quantised yet.

    The class of the layer decides, because pickle restores a weight without its class.
    """
    return _is_instance(layer, "Linear4bit", "Linear8bitLt")


def is_int8(layer: Any) -> bool:
    """Return whether a layer is a `Linear8bitLt` of bitsandbytes."""
    return _is_instance(layer, "Linear8bitLt")


def _is_instance(layer: nn.Module, *class_names: str) -> bool:
    """Return whether `layer` is an instance of these classes of bitsandbytes; bitsandbytes is not imported here."""
    modules = getattr(sys.modules.get("bitsandbytes"), "nn", None)
    return modules is not None and isinstance(layer, tuple(getattr(modules, name) for name in class_names))


def quant_state(layer: Any) -> Any:
    """Return the state that bitsandbytes needs to dequantise a 4-bit weight (scales, block size); None for 8 bits."""
    state = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state


def num_weights(module: nn.Module, name: str) -> int:
    """Return the number of weights in a parameter of a module; a stored byte of a weight in 4 bits holds two.

    Args:
        module: any module.
        name: name of one of its own parameters.
    """
    state = quant_state(module) if name == "weight" and is_quantized(module) else None
    parameter: nn.Parameter = getattr(module, name)
    return parameter.numel() if state is None else math.prod(state.shape)
