"""Parameters of adapted layers with the active adapters merged, for code that does not call the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import forward_attribute
from peftly.injection.adapted_forward import OriginalForward, WatchedForward
from peftly.injection.layers import LayerAdapter, base_modules
from peftly.injection.selection import AdapterNames, Selection
from peftly.kernels import is_quantized

__all__ = ["changes_weight", "readable"]


def changes_weight(adapter: nn.Module) -> bool:
    """Return whether an adapter of a layer changes the weight of the layer, so that it can be merged."""
    return getattr(type(adapter), "merge_into", None) is not LayerAdapter.merge_into


@contextmanager
def readable(path: str, layer: Any, selection: Selection) -> Iterator[None]:
    """Let others read the parameters of `layer` with the active adapters merged; its calls stay as they are."""
    names = [frozenset(layer.peftly) & active for active in set(selection.active.sets)]
    forward = vars(layer)["forward"]
    if not any(names) or isinstance(layer._parameters, _MergedParameters):  # a module around the reader reads it, too
        yield
        return
    are_inside = any(
        adapter.changes_inside for name, adapter in layer.peftly.items() if any(name in of for of in names)
    )
    own = {module: module._parameters for _, module in base_modules(layer) if are_inside or module is layer}
    merged = _Merged(own, path, layer, names)
    _set_parameters({module: _MergedParameters(module, merged) for module in own})
    vars(layer)["forward"] = _ForwardOfOwn(forward, own)
    try:
        yield
    finally:
        _set_parameters(own)
        vars(layer)["forward"] = forward


_Parameters = dict[Any, dict[str, Any]]
"""Parameters of modules, as they are in `module._parameters`."""


def _set_parameters(parameters: _Parameters) -> None:
    for module, values in parameters.items():
        module._parameters = values


class _ForwardOfOwn:
    """Forward of an adapted layer that computes with the layer's own parameters, while others read merged ones."""

    def __init__(self, forward: Any, own: _Parameters) -> None:
        self.forward, self.own = forward, own

    @property
    def original(self) -> OriginalForward:
        """Forward of the layer without adapters."""
        original: OriginalForward = self.forward.original
        return original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the layer with its active adapters."""
        merged = {module: module._parameters for module in self.own}
        _set_parameters(self.own)
        try:
            return self.forward(*args, **kwargs)
        finally:
            _set_parameters(merged)


class _MergedParameters(dict[str, Any]):
    """Parameters of a module, of which `module.weight` and `module.bias` are computed with adapters when read."""

    def __init__(self, module: nn.Module, merged: _Merged) -> None:
        super().__init__(module._parameters)
        self.module, self.merged = module, merged

    def __getitem__(self, name: str) -> Any:
        return self.merged.parameters[self.module][name]


class _Merged:
    """Parameters of a layer with its active adapters merged, computed when the first is read."""

    def __init__(self, own: _Parameters, path: str, layer: Any, names: list[AdapterNames]) -> None:
        self.own, self.path, self.layer, self.names = own, path, layer, names
        self.is_quantized = any(map(is_quantized, own))
        self.forward: Any = vars(layer)[forward_attribute(layer)]

    @cached_property
    def parameters(self) -> _Parameters:
        """The parameters."""
        self._check()
        if isinstance(self.forward, WatchedForward):
            self.forward.note_call()
        return _merged(self.layer, self.own, self.names[0])

    def _check(self) -> None:
        """Raise an error if no weight has the effect of the active adapters."""
        adapters = [self.layer.peftly[name] for name in self.layer.peftly if name in self.names[0]]
        reason = None
        if len(set(self.names)) > 1:
            reason = "so all examples of a batch must have the same adapters"
        elif not all(changes_weight(adapter) for adapter in adapters) or self.is_quantized:
            reason = "and an adapter there changes no weight: leave the layer out of it (target_modules)"
        elif len(adapters) > 1 and not all(adapter.only_adds for adapter in adapters):
            reason = f"and no weight has the joint effect of {' and '.join(self.layer.peftly)}: use one of them"
        elif any(adapter.training and getattr(adapter, "dropout", 0) for adapter in adapters):
            reason = "so there is no input to drop: set dropout to 0, or leave the layer out (target_modules)"
        if reason is not None:
            raise MethodError(f"this model reads the weight of {self.path} instead of calling the layer, {reason}")


def _merged(layer: Any, own: _Parameters, names: AdapterNames) -> _Parameters:
    """Return the parameters of `layer` with the adapters `names` merged, with gradients for the adapters.

    Args:
        layer: adapted layer.
        own: parameters of the layer, and of the modules inside it if the adapters change them.
        names: names of the adapters.
    """
    before = {module: (module._parameters, module._buffers) for module in own}
    for module, parameters in own.items():
        module._parameters = {
            name: None if value is None else value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in parameters.items()
        }
        module._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    try:
        for name, adapter in layer.peftly.items():
            if name in names:
                adapter.merge_into(layer)
        return {
            module: {
                name: None if value is None else module._parameters[name].to(value.dtype)
                for name, value in parameters.items()
            }
            for module, parameters in own.items()
        }
    finally:
        for module, (parameters, buffers) in before.items():
            module._parameters, module._buffers = parameters, buffers
