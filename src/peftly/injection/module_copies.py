"""Trained copies of modules, or of their biases. The tensors of the base never change."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.adapted_forward import OriginalForward
from peftly.injection.caching import invalidate_cached_tensors
from peftly.injection.devices import bias_of, in_memory
from peftly.injection.layers import (
    LAYER_ADAPTERS,
    LayerAdapter,
    adapted_layers,
    add_layer_adapter,
    base_modules,
    original_forward,
)
from peftly.injection.linear import is_foreign
from peftly.injection.nested_tensors import map_tensors
from peftly.injection.quantized_layers import dequantize_layers
from peftly.injection.weight_readers import without_reader
from peftly.kernels import is_quantized

__all__ = [
    "BiasCopy",
    "ModuleCopy",
    "add_copies",
    "bias_layers",
    "copied_buffers",
    "copied_modules",
    "copied_parameters",
    "norm_layers",
    "tied_copies",
    "untie_copies",
]

_NORM_CLASSES = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANNELS_SECOND = _NORM_CLASSES[2:]
_NORM_NAME = re.compile(
    r"(^|[._]|layer|rms)norm(_\w+|\d+)?(\.\d+)?$"  # input_layernorm, q_norm, LayerNorm, norm1, norm_f, layernorm.0
    r"|(^|\.)ln(_\w+|\d+)?(\.\d+)?$",  # ln_1, ln_f
    re.IGNORECASE,
)
"""Ends of the paths of normalisation layers. Many models of transformers have a class of their own for RMSNorm."""


class BiasCopy(LayerAdapter):
    """Trained copy of the bias of a layer that adds its bias last (linear layers, LayerNorm).

    Attributes:
        bias: (out_features,), fp32.
        is_of_channels: whether its elements belong to dimension 1 of the output, and not to the last.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_of(layer).detach().float().clone())
        self.is_of_channels = isinstance(layer, _CHANNELS_SECOND) or _reads_channels_first(layer)

    def run(self, layer: Any, inner: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output plus the difference of the two biases; see `LayerAdapter.run`."""
        output = inner(x, *args, **kwargs)
        if isinstance(output, tuple):  # layers of I-BERT return the scale of the output, too
            return (self._corrected(layer, output[0]), *output[1:])
        return self._corrected(layer, output)

    def _corrected(self, layer: Any, output: Tensor) -> Tensor:
        difference: Tensor = self.bias - bias_of(layer)
        if self.is_of_channels:
            difference = difference.view(-1, *[1] * (output.ndim - 2))
        return output + difference.to(output.dtype)

    def merge_into(self, layer: Any) -> None:
        """See `LayerAdapter.merge_into`."""
        layer.bias.copy_(self.bias)


def _reads_channels_first(layer: Any) -> bool:
    """Return whether a LayerNorm with a forward of its own normalises dimension 1 of images or sequences."""
    if getattr(layer, "data_format", None) == "channels_first":
        return True
    if not isinstance(layer, nn.LayerNorm) or type(layer).forward is nn.LayerNorm.forward:
        return False
    count, weight = layer.normalized_shape[-1], layer.weight
    try:
        with torch.no_grad():  # SqueezeBERT's
            return bool(OriginalForward(layer)(weight.new_zeros(1, count, count + 1)).shape[1] == count)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False


class ModuleCopy(LayerAdapter):
    """Trained copy of a whole module, in fp32, whose output replaces the output of the module.

    Quantised layers are dequantised in the copy. Where other adapters change the module too, the difference between the
    output of the copy and the output of the unchanged module is added to their output.

    Attributes:
        copy: the copy.
    """

    changes_inside = True

    def __init__(self, layer: nn.Module, memo: dict[int, Any]) -> None:
        """Copy `layer`; with one `memo` for several layers, parameters that they share are shared by the copies."""
        super().__init__()
        for path, parameter in layer.named_parameters():
            if is_foreign(parameter):
                raise MethodError(
                    f"{path} of a {type(layer).__name__} is a {type(parameter).__name__}, of which no copy can be "
                    "trained; open the base without quantisation, or use method lora"
                )
        for _, module in base_modules(layer):
            if LAYER_ADAPTERS in module._modules:
                memo[id(module._modules[LAYER_ADAPTERS])] = nn.ModuleDict()  # other adapters are not copied
            memo.update({id(hook): hook for hook in map(_our_hook, _hooks(module)) if hook is not None})
            for value in vars(module).values():
                if isinstance(value, Tensor) and not value.is_leaf:  # computed from parameters, as by weight_norm
                    memo[id(value)] = value.detach().clone()
        _forget_computed_tensors(layer)
        state = vars(layer).get("_peftly")
        memo.update({id(state): None} if state is not None else {})  # of the whole model, and so of all its adapters
        with in_memory(layer):
            self.copy = _without_adapters(copy.deepcopy(layer, memo))
        dequantize_layers(self.copy, torch.float32)
        self.copy.float().requires_grad_(True)
        self.register_buffer("placed", torch.empty(0), persistent=False)  # accelerate places modules with tensors

    def run(self, layer: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the output of the copy, which may be a tuple or a dictionary; see `LayerAdapter.run`."""
        copy_dtype = next(self.copy.parameters()).dtype
        dtype = next(layer.parameters()).dtype
        if any(map(is_quantized, layer.modules())):
            dtype = next((value.dtype for value in args if isinstance(value, Tensor)), copy_dtype)
        wide_args, wide_kwargs = map_tensors(partial(_cast, source=dtype, target=copy_dtype), (args, kwargs))
        output = self.copy(*wide_args, **wide_kwargs)
        if isinstance(inner, OriginalForward):
            return map_tensors(partial(_cast, source=copy_dtype, target=dtype), output)
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise MethodError(
                f"two adapters change a {type(layer).__name__}, and the effect of a copy cannot be added with a "
                "key-value cache; activate one of them"
            )
        return map_tensors(_add_difference, inner(*args, **kwargs), output, original_forward(layer)(*args, **kwargs))

    def merge_into(self, layer: Any) -> None:
        """See `LayerAdapter.merge_into`."""
        # Buffers too: training may have changed the running statistics of a BatchNorm in the copy.
        for path, tensor in [*self.copy.named_parameters(), *self.copy.named_buffers()]:
            module, _, attribute = path.rpartition(".")
            getattr(layer.get_submodule(module), attribute).copy_(tensor)
        _forget_computed_tensors(layer)


def _forget_computed_tensors(layer: nn.Module) -> None:
    """Let modules drop tensors that they keep for evaluation, computed from parameters that have changed (LeViT)."""
    modes = {module: module.training for module in layer.modules()}
    try:
        layer.train()  # such modules drop them here
    finally:
        for module, mode in modes.items():
            module.training = mode


def _cast(value: Tensor, source: torch.dtype, target: torch.dtype) -> Tensor:
    """Return a tensor of the dtype `source` in the dtype `target`, and any other as it is."""
    return value.to(target) if value.dtype == source else value


def _add_difference(output: Tensor, changed: Tensor, unchanged: Tensor) -> Tensor:
    """Return `output + (changed - unchanged)`, in the dtype of `output`."""
    difference = changed - unchanged
    return output + difference.to(output.dtype)


def add_copies(model: nn.Module, name: str, modules: Iterable[nn.Module]) -> None:
    """Add trained copies of `modules` to adapter `name`.

    Args:
        model: model that contains the modules.
        name: name of the adapter.
        modules: modules of the base, none of them inside another.

    Raises:
        MethodError: the adapter changes one of the modules already.
    """
    memo: dict[int, Any] = {}
    for module in list(modules):
        add_layer_adapter(model, module, name, ModuleCopy(module, memo))


def copied_parameters(model: nn.Module, name: str, prefix: str = "") -> dict[str, nn.Parameter]:
    """Return the parameters of the module copies of adapter `name`, by `prefix` plus their names in the base."""
    return {
        f"{prefix}{path}.{parameter_path}": parameter
        for path, _, layer_adapter in adapted_layers(model, name)
        if isinstance(layer_adapter, ModuleCopy)
        for parameter_path, parameter in layer_adapter.copy.named_parameters(remove_duplicate=False)
    }


def copied_buffers(model: nn.Module, name: str, prefix: str = "") -> dict[str, Tensor]:
    """Return the saved buffers of the module copies of adapter `name`, by `prefix` plus their names in the base.

    Such buffers are the running statistics of a BatchNorm, which a training step changes too.
    """
    return {
        f"{prefix}{path}.{tensor_path}": tensor
        for path, _, layer_adapter in adapted_layers(model, name)
        if isinstance(layer_adapter, ModuleCopy)
        for tensor_path, tensor in layer_adapter.copy.state_dict(keep_vars=True).items()
        if not isinstance(tensor, nn.Parameter)
    }


def tied_copies(model: nn.Module, name: str) -> list[list[str]]:
    """Return the names in the base of each parameter that several module copies of adapter `name` share."""
    names: defaultdict[nn.Parameter, list[str]] = defaultdict(list)
    for parameter_name, parameter in copied_parameters(model, name).items():
        names[parameter].append(parameter_name)
    return [group for group in names.values() if len(group) > 1]


def untie_copies(model: nn.Module, name: str, names: Iterable[str]) -> None:
    """Give a module copy of adapter `name` parameters of its own, instead of those that other copies share.

    Args:
        model: model with the adapter.
        name: name of the adapter.
        names: names of the parameters in the base, see `tied_copies`.
    """
    copies = {path: change.copy for path, _, change in adapted_layers(model, name) if isinstance(change, ModuleCopy)}
    for parameter_name in names:
        path = next(path for path in copies if parameter_name.startswith(f"{path}."))
        inner, _, attribute = parameter_name.removeprefix(f"{path}.").rpartition(".")
        owner_module = copies[path].get_submodule(inner)
        parameter = getattr(owner_module, attribute)
        setattr(owner_module, attribute, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    invalidate_cached_tensors()


def copied_modules(model: nn.Module, name: str) -> list[str]:
    """Return the paths of the modules of which adapter `name` trains copies."""
    return [path for path, _, layer_adapter in adapted_layers(model, name) if isinstance(layer_adapter, ModuleCopy)]


def bias_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and normalisation layers of `model` that have a bias and add it last, by path."""
    norms = norm_layers(model)
    return {
        path: layer
        for path, layer in base_modules(model)
        if (isinstance(layer, nn.Linear | Conv1D) or path in norms)
        and isinstance(getattr(layer, "bias", None), nn.Parameter)
        and not _has_activation(layer)
    }


def _has_activation(layer: nn.Module) -> bool:
    """Return whether a module inside a layer may change its output after the bias was added (BiT's normalisations)."""
    children = (child for name, child in layer.named_children() if name != LAYER_ADAPTERS)
    return not all(isinstance(child, nn.Identity) for child in children)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the normalisation layers of `model` that have parameters, by path.

    A normalisation layer is an instance of a class of torch, or a module whose name says so and whose parameters are
    vectors.
    """
    return {path: layer for path, layer in base_modules(model) if _is_norm(path, layer)}


def _is_norm(path: str, layer: nn.Module) -> bool:
    parameters = list(layer.parameters(recurse=False))
    if not parameters or isinstance(layer, _NORM_CLASSES):
        return bool(parameters)
    return _NORM_NAME.search(path) is not None and all(parameter.ndim == 1 for parameter in parameters)


def _hooks(module: nn.Module) -> list[Any]:
    """Return the hooks on the calls of a module."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _our_hook(hook: Any) -> Any:
    """Return the object of this package to which a hook belongs, or None."""
    owner = getattr(hook, "__self__", hook)
    return owner if getattr(owner, "__module__", "").startswith(f"{__package__}.") else None


def _without_adapters(clone: nn.Module) -> nn.Module:
    """Remove from a copied module the adapters and hooks of the original."""
    vars(clone).pop("_peftly", None)
    for module in list(clone.modules()):
        remove_hook_from_module(module)
        if LAYER_ADAPTERS in dict(module.named_children()):
            delattr(module, LAYER_ADAPTERS)
            vars(module).pop("forward", None)
        without_reader(module)
    for hooks in (clone._forward_pre_hooks, clone._forward_hooks):  # those of the original run around the copy
        for key in [key for key, hook in hooks.items() if _our_hook(hook) is not None]:
            del hooks[key]
    return clone
