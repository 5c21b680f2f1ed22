"""Quantised linear layers of a model: replace their forward by our kernels, and convert them to plain layers."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS, original_forward
from peftly.kernels import dequantized_linear, dequantized_weight, is_int8, is_quantized, quant_state

__all__ = [
    "QUANTIZATION",
    "QuantizedForward",
    "dequantize",
    "dequantize_layers",
    "patch_quantized_layers",
    "quantization_settings",
    "restore_quantized_layers",
]

ModelT = TypeVar("ModelT", bound=nn.Module)

QUANTIZATION = "_peftly_quantization"
"""Attribute of a model with the settings of its quantization, which stay known once its layers are dequantised."""


class QuantizedForward:
    """Forward that replaces the one of a quantised layer.

    It is an object and not a closure, so that deepcopy and pickle copy it with the layer.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x Wᵀ + bias`, (..., in_features) -> (..., out_features), in the dtype of `x`."""
        layer, dtype = self.layer, self.dtype(x)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if x.is_cpu or is_int8(layer):
            return dequantized_linear(x.to(dtype), partial(dequantized_weight, layer, dtype), bias).to(x.dtype)
        # On an accelerator, bitsandbytes multiplies a single token without dequantising the whole weight.
        bitsandbytes = importlib.import_module("bitsandbytes")
        output: Tensor = bitsandbytes.matmul_4bit(x.to(dtype), layer.weight, quant_state(layer), bias=bias)
        return output.to(x.dtype)

    def dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype in which the product with `x` is computed."""
        return getattr(self.layer, "compute_dtype", None) or x.dtype


def patch_quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Replace the forward of the quantised layers of a model by `QuantizedForward`.

    Returns:
        The layers whose forward was replaced by this call.

    Raises:
        MethodError: bitsandbytes has repacked the weight of a layer, which cannot be undone, or somebody else has
            replaced the forward of a layer.
    """
    layers: list[Any] = [layer for layer in model.modules() if is_quantized(layer) and not _is_patched(layer)]
    if any(getattr(quant_state(layer), "packing_format_for_cpu", False) for layer in layers):
        raise MethodError(
            "bitsandbytes has repacked the weights of this model, with rounded scales, when the model was called; "
            "open the model again and attach the adapter before the first call, or open it with peftly.load_base"
        )
    _refuse_replaced(model)
    for layer in layers:
        # accelerate, which moves inputs between devices, stores the forward that it has wrapped in `_old_forward`.
        attribute = "_old_forward" if "_old_forward" in vars(layer) else "forward"
        setattr(layer, attribute, QuantizedForward(layer))
    return layers


def restore_quantized_layers(layers: list[nn.Module]) -> None:
    """Undo `patch_quantized_layers` for the layers that it returned."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), QuantizedForward):
            del layer.forward
        elif _is_patched(layer):
            layer._old_forward = type(layer).forward.__get__(layer)


def dequantize(model: ModelT) -> ModelT:
    """Convert the quantised layers of a model to plain layers with the dequantised weights, in place.

    Adapters stay attached. The plain weights can be changed, for example by `merge`.

    Args:
        model: a transformers model on one device.

    Returns:
        The same model.

    Raises:
        MethodError: the model is spread over several devices, or somebody has replaced the forward of a layer.
    """
    if any(hasattr(layer, "_hf_hook") for layer in model.modules() if is_quantized(layer)):
        raise MethodError("this model is spread over several devices; open it on one device to dequantise it")
    _refuse_replaced(model)
    if not hasattr(model, QUANTIZATION) and (settings := quantization_settings(model)) is not None:
        setattr(model, QUANTIZATION, settings)
    dequantize_layers(model, getattr(model, "dtype", None))
    if getattr(model, "hf_quantizer", None) is not None:
        _remove_quantization_marks(model)
    return model


def quantization_settings(model: Any) -> dict[str, Any] | None:
    """Return the settings with which the layers of a model were quantized, by the names of `peftly.Quantization`.

    None if no layer is quantized, or if the files of the model are.
    """
    layer: Any = next((layer for layer in model.modules() if is_quantized(layer)), None)
    if layer is None or getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        return None
    if is_int8(layer):
        return {"kind": "int8", "dtype": _name(getattr(model, "dtype", torch.float32))}
    state = quant_state(layer)
    settings = {"kind": state.quant_type, "double": state.nested, "block_size": state.blocksize}
    return {**settings, "dtype": _name(state.dtype)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dequantize_layers(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert the quantised layers inside `module` to plain layers, in place; `dtype` as in `dequantized_weight`."""
    for layer in [layer for layer in module.modules() if is_quantized(layer)]:
        make_plain(layer, dequantized_weight(layer, dtype))


def _remove_quantization_marks(model: Any) -> None:
    """Remove the attributes by which transformers marks a quantised model."""
    model.hf_quantizer.remove_quantization_config(model)
    for attribute in ("is_loaded_in_4bit", "is_loaded_in_8bit", "_hf_peft_config_loaded"):
        vars(model).pop(attribute, None)
    for module in model.modules():
        vars(getattr(module, "config", model.config)).pop("_is_quantized", None)
    # Conversions that transformers would apply to the tensors when the model is saved.
    if vars(model).get("_weight_conversions"):
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not any(_is_of_bitsandbytes(operation) for operation in getattr(conversion, "operations", ()))
        ]


def _is_of_bitsandbytes(operation: Any) -> bool:
    return type(operation).__module__ == "transformers.integrations.bitsandbytes"


def make_plain(layer: Any, weight: Tensor) -> None:
    """Convert a quantised layer to a plain one of its original class, in place.

    Args:
        layer: layer for which `is_quantized` is true.
        weight: (out_features, in_features).
    """
    out_features, in_features = weight.shape
    # The class of the layer that transformers has replaced by the quantised one.
    is_conv = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
    with torch.device("meta"):
        plain: Any = Conv1D(out_features, in_features) if is_conv else nn.Linear(in_features, out_features)
    plain.weight = nn.Parameter(weight.T.contiguous() if is_conv else weight, requires_grad=False)
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(weight.dtype), requires_grad=False)
    plain.train(layer.training)
    for name in [name for name in vars(plain) if name.startswith(("_forward_", "_backward_"))]:
        setattr(plain, name, vars(layer)[name])  # hooks of users; the ones on loading and saving belong to bitsandbytes
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
    """Raise an error if somebody else has replaced the forward of a quantised layer, which would be lost.

    Raises:
        MethodError: the forward of a layer was replaced.
    """
    for path, layer in model.named_modules():
        if not is_quantized(layer):
            continue
        forward = vars(layer).get("_old_forward", vars(layer).get("forward"))
        forward = forward.original.replaced if hasattr(forward, "original") else forward  # below the adapters
        is_original = getattr(forward, "__func__", None) is type(layer).forward
        if not (forward is None or is_original or isinstance(forward, QuantizedForward)):
            raise MethodError(
                f"the forward of {path}, which is quantised, was replaced, and that would be lost: "
                "delete it (del layer.forward) first; a hook (register_forward_hook) instead of it would stay"
            )


def _is_patched(layer: nn.Module) -> bool:
    return any(isinstance(vars(layer).get(name), QuantizedForward) for name in ("forward", "_old_forward"))
