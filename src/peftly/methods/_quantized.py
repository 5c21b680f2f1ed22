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
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.methods._layers import CHANGES, own_forward
from peftly.quantization import Quantization

REMEMBERED = "_peftly_quantization"
"""On a model that was opened quantised: how."""

ModelT = TypeVar("ModelT", bound=nn.Module)

__all__ = [
    "QuantizedForward",
    "dequantize",
    "finish",
    "give_back",
    "is_quantized",
    "quantization_of",
    "take_over",
    "unpack_layers",
    "unpacked",
]


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer is a linear one of bitsandbytes, with a weight in 4 or 8 bits."""
    weight: Any = getattr(layer, "weight", None)
    if not _is_of_bitsandbytes(layer) or weight is None:
        return False
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def unpacked(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weight of a quantised layer as a new tensor, (out_features, in_features).

    Args:
        layer: it.
        dtype: of the result; None: that of the weight before it was quantised, of an 8-bit one float32.
    """
    weight = layer.weight
    if _has_8_bits(layer):
        scales = getattr(weight, "SCB", None)
        scales = layer.state.SCB if scales is None else scales
        whole: Tensor = weight.data * (scales / 127)[:, None]
        return whole.to(dtype or torch.float32)
    state = copy.copy(_state(layer))
    state.dtype = dtype or state.dtype
    shape, size = state.shape, state.blocksize
    if shape[-1] % size:
        # On a CPU bitsandbytes takes the scales of other blocks where a row is not made of whole ones.
        count = math.prod(shape)
        state.shape = torch.Size((count // size, size) if count % size == 0 else (1, count))
    found: Tensor = importlib.import_module("bitsandbytes").functional.dequantize_4bit(weight.data, state)
    return found.view(shape)


class QuantizedForward:
    """Stands in for the forward of a quantised layer. An object, so that deepcopy and pickle take it along."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer, dtype = self.layer, self.dtype(x)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if x.is_cpu or _has_8_bits(layer):
            return unpacked_linear(x.to(dtype), partial(unpacked, layer, dtype), bias).to(x.dtype)
        # On an accelerator it has a product of its own, which need not unpack all of the weight for a single word.
        bitsandbytes = importlib.import_module("bitsandbytes")
        output: Tensor = bitsandbytes.matmul_4bit(x.to(dtype), layer.weight, _state(layer), bias=bias)
        return output.to(x.dtype)

    def dtype(self, x: Tensor) -> torch.dtype:
        """Return what the product with `x` is computed in."""
        return getattr(self.layer, "compute_dtype", None) or x.dtype


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


def take_over(model: nn.Module) -> list[nn.Module]:
    """Let the quantised layers of a model compute as this file says, and return those that did not yet.

    Raises:
        MethodError: bitsandbytes has repacked one of them, which cannot be undone, or its forward was replaced.
    """
    layers: list[Any] = [layer for layer in model.modules() if is_quantized(layer) and not _is_taken_over(layer)]
    if any(getattr(_state(layer), "packing_format_for_cpu", False) for layer in layers):
        raise MethodError(
            "bitsandbytes has repacked the weights of this model, with rounded scales, when it was called; open it "
            "anew and attach the adapter before anything else, or open it with peftly.load_base"
        )
    _refuse_replaced(model)
    for layer in layers:
        # accelerate, which moves inputs between devices, keeps the forward that it has wrapped under this name.
        place = "_old_forward" if "_old_forward" in vars(layer) else "forward"
        setattr(layer, place, QuantizedForward(layer))
    return layers


def give_back(layers: list[nn.Module]) -> None:
    """Undo `take_over` for the layers that it has returned."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), QuantizedForward):
            del layer.forward
        elif _is_taken_over(layer):
            layer._old_forward = type(layer).forward.__get__(layer)


def quantization_of(model: Any) -> Quantization | None:
    """Return how a model was quantised when it was opened; None if it was not, or if its files have it so already."""
    known: Quantization | None = getattr(model, REMEMBERED, None)
    if known is not None:
        return known
    layer: Any = next((layer for layer in model.modules() if is_quantized(layer)), None)
    if layer is None or getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        return None
    if _has_8_bits(layer):
        return Quantization.model_validate({"kind": "int8", "dtype": _name(model.dtype)})
    state = _state(layer)
    found = {"kind": state.quant_type, "double": state.nested, "block_size": state.blocksize}
    return Quantization.model_validate({**found, "dtype": _name(state.dtype)})


def finish(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Let a model that has just been quantised compute in `dtype`, and remember how it was made.

    What was in no file, and so was drawn at random, has not been quantised: it becomes plain again.
    """
    for layer in [layer for layer in model.modules() if _is_of_bitsandbytes(layer) and not is_quantized(layer)]:
        _make_plain(layer, layer.weight.data)
    setattr(model, REMEMBERED, quantization.model_copy(update={"dtype": quantization.dtype or _name(model.dtype)}))
    if model.dtype != dtype:
        for parameter in model.parameters():
            if parameter.is_floating_point() and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype


def dequantize(model: ModelT) -> ModelT:
    """Make plain layers of the quantised ones of a model, in place: the same weights, unpacked. Adapters stay on them.

    Then they can be changed, as `merge` does.

    Args:
        model: a transformers model that is on one device.

    Returns:
        The same model.

    Raises:
        MethodError: it is spread over several devices, or somebody has replaced the forward of a layer.
    """
    if any(hasattr(layer, "_hf_hook") for layer in model.modules() if is_quantized(layer)):
        raise MethodError("this model is spread over several devices; open it on one to unpack its weights")
    _refuse_replaced(model)
    unpack_layers(model, getattr(model, "dtype", None))
    if getattr(model, "hf_quantizer", None) is not None:
        _forget_quantization(model)
    return model


def unpack_layers(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Make plain layers of the quantised ones in a module, in place; see `unpacked` for their dtype."""
    for layer in [layer for layer in module.modules() if is_quantized(layer)]:
        _make_plain(layer, unpacked(layer, dtype))


def _forget_quantization(model: Any) -> None:
    """Take from a model, whose layers are plain, what transformers notes down on a quantised one."""
    model.hf_quantizer.remove_quantization_config(model)
    for note in ("is_loaded_in_4bit", "is_loaded_in_8bit", "_hf_peft_config_loaded"):
        vars(model).pop(note, None)
    for module in model.modules():
        vars(getattr(module, "config", model.config)).pop("_is_quantized", None)
    # What it would do to the tensors when it saves them.
    if vars(model).get("_weight_conversions"):
        model._weight_conversions = [
            one
            for one in model._weight_conversions
            if not any(type(part).__name__.startswith("Bnb") for part in getattr(one, "operations", ()))
        ]


def _make_plain(layer: Any, weight: Tensor) -> None:
    """Make a quantised layer what it was before, with this weight."""
    out_features, in_features = weight.shape
    # transformers notes down what it has replaced by the quantised layer.
    is_conv = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
    with torch.device("meta"):
        plain: Any = Conv1D(out_features, in_features) if is_conv else nn.Linear(in_features, out_features)
    plain.weight = nn.Parameter(weight.T.contiguous() if is_conv else weight, requires_grad=False)
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(weight.dtype), requires_grad=False)
    plain.train(layer.training)
    for name in [name for name in vars(plain) if name.startswith(("_forward_", "_backward_"))]:
        setattr(plain, name, vars(layer)[name])  # hooks; those on loading and saving are of bitsandbytes
    plain._is_full_backward_hook = layer._is_full_backward_hook
    if hasattr(layer, CHANGES):
        plain.peftly, forward = layer.peftly, vars(layer).get("forward")
        if forward is not None:
            own_forward(layer).replaced = None
            plain.forward = forward
    layer.__class__ = type(plain)
    vars(layer).clear()
    vars(layer).update(vars(plain))


def _is_of_bitsandbytes(layer: nn.Module) -> bool:
    """Whether it is by its class; what pickle brings back has lost that of its weight."""
    return any(kind.__name__ in ("Linear4bit", "Linear8bitLt") for kind in type(layer).__mro__)


def _has_8_bits(layer: Any) -> bool:
    return any(kind.__name__ == "Linear8bitLt" for kind in type(layer).__mro__)


def _state(layer: Any) -> Any:
    """Return what bitsandbytes knows of a 4-bit weight; None of another."""
    found = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if found is None else found


def _refuse_replaced(model: nn.Module) -> None:
    """Do nothing unless somebody else answers for a quantised layer, whose answer would be lost.

    Raises:
        MethodError: so it is.
    """
    for path, layer in model.named_modules():
        if not is_quantized(layer):
            continue
        forward = vars(layer).get("_old_forward", vars(layer).get("forward"))
        forward = forward.own.replaced if hasattr(forward, "own") else forward  # adapters stay, whatever is below them
        is_its_own = getattr(forward, "__func__", None) is type(layer).forward
        if not (forward is None or is_its_own or isinstance(forward, QuantizedForward)):
            raise MethodError(
                f"the forward of {path}, which is quantised, was replaced, and that would be lost: "
                "del its forward first; a hook (register_forward_hook) in its place is kept"
            )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _is_taken_over(layer: nn.Module) -> bool:
    return any(isinstance(vars(layer).get(place), QuantizedForward) for place in ("forward", "_old_forward"))
