"""Trained copies of parts of the base: whole modules, or their biases. The base's own tensors stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.injection.devices import bias_of, in_memory
from peftly.injection.layers import (
    LAYER_ADAPTERS,
    LayerAdapter,
    OriginalForward,
    adapted_layers,
    add_layer_adapter,
    original_forward,
)
from peftly.injection.quantized_layers import unpack_layers
from peftly.injection.targets import base_modules
from peftly.kernels import is_quantized

__all__ = [
    "BiasCopy",
    "ModuleCopy",
    "add_copies",
    "bias_layers",
    "copied_modules",
    "copied_parameters",
    "is_norm",
]


class BiasCopy(LayerAdapter):
    """A trained copy of a layer's bias, for any layer that adds its bias last (linear, LayerNorm)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_of(layer).detach().float().clone())

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = inner(x, *args, **kwargs)
        change: Tensor = self.bias - bias_of(layer)
        return output + change.to(output.dtype)

    def merge_into(self, layer: Any) -> None:
        layer.bias.copy_(self.bias)


class ModuleCopy(LayerAdapter):
    """A trained copy of a whole module, in fp32, that answers in the module's place. Quantised layers are plain in it.

    Where other adapters change the module too, it adds the difference that training made to their answer.
    """

    def __init__(self, layer: nn.Module, memo: dict[int, Any]) -> None:
        """Copy `layer`; the same `memo` for several layers keeps what they share shared in the copies."""
        super().__init__()
        with in_memory(layer):
            self.copy = _pristine(copy.deepcopy(layer, memo))
        unpack_layers(self.copy, torch.float32)
        self.copy.float().requires_grad_(True)

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_packed = any(map(is_quantized, layer.modules()))
        dtype = x.dtype if is_packed else next(layer.parameters()).dtype
        given = x.to(next(self.copy.parameters()).dtype) if x.dtype == dtype else x
        output: Tensor = self.copy(given, *args, **kwargs)
        if isinstance(inner, OriginalForward):
            return output.to(dtype)
        others = inner(x, *args, **kwargs)
        return others + (output - original_forward(layer)(x, *args, **kwargs)).to(others.dtype)

    def merge_into(self, layer: Any) -> None:
        for inner, parameter in self.copy.named_parameters():
            layer.get_parameter(inner).copy_(parameter)


def add_copies(model: nn.Module, name: str, modules: Iterable[nn.Module]) -> None:
    """Let adapter `name` train copies of `modules`, which are parts of `model`.

    Raises:
        MethodError: one of them is changed by the adapter in another way too.
    """
    memo: dict[int, Any] = {}
    for module in list(modules):
        add_layer_adapter(model, module, name, ModuleCopy(module, memo))


def copied_parameters(model: nn.Module, name: str, prefix: str = "") -> dict[str, nn.Parameter]:
    """Return the parameters of the copies that adapter `name` trains, by their names in the base behind `prefix`."""
    return {
        f"{prefix}{path}.{inner}": parameter
        for path, _, change in adapted_layers(model, name)
        if isinstance(change, ModuleCopy)
        for inner, parameter in change.copy.named_parameters(remove_duplicate=False)
    }


def copied_modules(model: nn.Module, name: str) -> list[str]:
    """Return the paths of the modules that adapter `name` trains copies of."""
    return [path for path, _, change in adapted_layers(model, name) if isinstance(change, ModuleCopy)]


def bias_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` that add a bias last, by path."""
    return {
        path: layer
        for path, layer in base_modules(model)
        if (isinstance(layer, nn.Linear | Conv1D) or is_norm(layer))
        and isinstance(getattr(layer, "bias", None), nn.Parameter)
    }


def is_norm(layer: nn.Module) -> bool:
    """Whether a module is a layer normalisation of any kind: transformers has a class of its own for many a model."""
    return "norm" in type(layer).__name__.lower() and any(True for _ in layer.parameters(recurse=False))


def _pristine(clone: nn.Module) -> nn.Module:
    """Take from a copied module what adapters had added to the original."""
    for module in list(clone.modules()):
        remove_hook_from_module(module)
        if LAYER_ADAPTERS in dict(module.named_children()):
            delattr(module, LAYER_ADAPTERS)
            vars(module).pop("forward", None)
    return clone
