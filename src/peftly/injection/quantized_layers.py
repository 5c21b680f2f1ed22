"""Quantised linear layers of a model: let them compute with our kernels, and make plain layers of them."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS, original_forward
from peftly.kernels import has_8_bits, is_quantized, quant_state, unpacked, unpacked_linear

__all__ = ["QuantizedForward", "dequantize", "patch_quantized_layers", "restore_quantized_layers", "unpack_layers"]

ModelT = TypeVar("ModelT", bound=nn.Module)


class QuantizedForward:
    """Stands in for the forward of a quantised layer. An object, so that deepcopy and pickle take it along."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer, dtype = self.layer, self.dtype(x)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if x.is_cpu or has_8_bits(layer):
            return unpacked_linear(x.to(dtype), partial(unpacked, layer, dtype), bias).to(x.dtype)
        # On an accelerator it has a product of its own, which need not unpack all of the weight for a single word.
        bitsandbytes = importlib.import_module("bitsandbytes")
        output: Tensor = bitsandbytes.matmul_4bit(x.to(dtype), layer.weight, quant_state(layer), bias=bias)
        return output.to(x.dtype)

    def dtype(self, x: Tensor) -> torch.dtype:
        """Return what the product with `x` is computed in."""
        return getattr(self.layer, "compute_dtype", None) or x.dtype


def patch_quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Let the quantised layers of a model compute as this file says, and return those that did not yet.

    Raises:
        MethodError: bitsandbytes has repacked one of them, which cannot be undone, or its forward was replaced.
    """
    layers: list[Any] = [layer for layer in model.modules() if is_quantized(layer) and not _is_taken_over(layer)]
    if any(getattr(quant_state(layer), "packing_format_for_cpu", False) for layer in layers):
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


def restore_quantized_layers(layers: list[nn.Module]) -> None:
    """Undo `patch_quantized_layers` for the layers that it has returned."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), QuantizedForward):
            del layer.forward
        elif _is_taken_over(layer):
            layer._old_forward = type(layer).forward.__get__(layer)


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
        make_plain(layer, unpacked(layer, dtype))


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


def make_plain(layer: Any, weight: Tensor) -> None:
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
    if hasattr(layer, LAYER_ADAPTERS):
        plain.peftly, forward = layer.peftly, vars(layer).get("forward")
        if forward is not None:
            original_forward(layer).replaced = None
            plain.forward = forward
    layer.__class__ = type(plain)
    vars(layer).clear()
    vars(layer).update(vars(plain))


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


def _is_taken_over(layer: nn.Module) -> bool:
    return any(isinstance(vars(layer).get(place), QuantizedForward) for place in ("forward", "_old_forward"))
