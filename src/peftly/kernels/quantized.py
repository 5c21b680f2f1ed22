"""Linear layers that bitsandbytes keeps in 4 or 8 bits: how they are computed with, and unpacked.

A weight is unpacked for a product, and only for it. Two habits of bitsandbytes' own layers are not shared. On CPUs with
AVX512-BF16 a 4-bit layer repacks its weight in place when it is first called without gradients, rounds its scales, and
computes other numbers from then on. And its 8-bit product of a row depends on the other rows of the batch, among which
it looks for outliers.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["is_quantized", "unpacked"]


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer is a linear one of bitsandbytes, with a weight in 4 or 8 bits."""
    weight: Any = getattr(layer, "weight", None)
    if not is_bitsandbytes_layer(layer) or weight is None:
        return False
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def unpacked(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weight of a quantised layer as a new tensor, (out_features, in_features).

    Args:
        layer: it.
        dtype: of the result; None: that of the weight before it was quantised, of an 8-bit one float32.
    """
    weight = layer.weight
    if has_8_bits(layer):
        scales = getattr(weight, "SCB", None)
        scales = layer.state.SCB if scales is None else scales
        whole: Tensor = weight.data * (scales / 127)[:, None]
        return whole.to(dtype or torch.float32)
    state = copy.copy(quant_state(layer))
    state.dtype = dtype or state.dtype
    shape, size = state.shape, state.blocksize
    if shape[-1] % size:
        # On a CPU bitsandbytes takes the scales of other blocks where a row is not made of whole ones.
        count = math.prod(shape)
        state.shape = torch.Size((count // size, size) if count % size == 0 else (1, count))
    found: Tensor = importlib.import_module("bitsandbytes").functional.dequantize_4bit(weight.data, state)
    return found.view(shape)


def unpacked_linear(x: Tensor, unpack: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """Return `x Wᵀ + bias` for a frozen weight that is unpacked for this product, and again for the backward pass.

    Args:
        x: (..., in_features).
        unpack: gives the weight, (out_features, in_features), in the dtype of `x`.
        bias: (out_features,) or None; gets no gradient.

    Returns:
        (..., out_features).
    """
    apply: Callable[..., Tensor] = _UnpackedLinear.apply
    return apply(x, unpack, bias)


class _UnpackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unpack: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.unpack = unpack
        with torch.autocast(x.device.type, enabled=False):  # its dtype is chosen already
            return F.linear(x, unpack(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.unpack(), None, None


def is_bitsandbytes_layer(layer: nn.Module) -> bool:
    """Whether it is by its class; what pickle brings back has lost that of its weight."""
    return any(kind.__name__ in ("Linear4bit", "Linear8bitLt") for kind in type(layer).__mro__)


def has_8_bits(layer: Any) -> bool:
    return any(kind.__name__ == "Linear8bitLt" for kind in type(layer).__mro__)


def quant_state(layer: Any) -> Any:
    """Return what bitsandbytes knows of a 4-bit weight; None of another."""
    found = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if found is None else found
