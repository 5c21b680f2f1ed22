"""Modules that read the weights of adapted layers instead of calling the layers, and get the adapted weights.

`nn.MultiheadAttention` reads `out_proj.weight`, and in evaluation mode `nn.TransformerEncoderLayer` reads the weights
of all its layers for one fused call. Adapters run in the forward of a layer, which such a module does not call. So
while it runs, the weights that it reads are those of the layer with its active adapters merged, and torch's fused calls
are off.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import forward_attribute, restore_forward
from peftly.injection.adapted_forward import AdaptedForward, OriginalForward, WatchedForward
from peftly.injection.layers import LayerAdapter, base_modules
from peftly.injection.selection import AdapterNames, Selection
from peftly.injection.weight_uses import ANY, changes_weights, weights_read
from peftly.kernels import is_quantized

__all__ = ["layers_read", "remove_weight_readers", "serve_weight_readers", "without_reader"]

_FUSED_ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""Classes of torch that read the weights of all their submodules, for fused calls in evaluation mode."""

_CALLED_IF_QUANTIZED = ("dt_proj",)
"""Layers that a Mamba calls if they are quantised, and whose weights it reads otherwise."""

_LOCK = threading.RLock()
"""Held while the weights that a module reads are replaced, which another thread must not see."""


class _ReaderForward:
    """Forward of a module that reads weights of adapted layers."""

    def __init__(self, module: nn.Module, layers: Mapping[str, Any], selection: Selection, *, is_fused: bool) -> None:
        """Create the forward.

        Args:
            module: the module.
            layers: layers inside the module whose weights it reads, by path in the model.
            selection: active adapters of the model.
            is_fused: whether the module is one of the fused encoders of torch.
        """
        self.module, self.layers, self.selection, self.is_fused = module, dict(layers), selection, is_fused
        self.original = OriginalForward(module)

    @property
    def __signature__(self) -> inspect.Signature:
        """Signature of the module's own forward, which its callers may look up."""
        return inspect.signature(self.original.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the module with the active adapters of the layers that it reads."""
        if self.is_fused:
            if not self.selection.active.names:
                return self.original(*args, **kwargs)
            with _FUSED_CALLS.disabled():
                return self.original(*args, **kwargs)
        with _LOCK, ExitStack() as stack:
            for path, layer in self.layers.items():
                stack.enter_context(_readable(path, layer, self.selection))
            return self.original(*args, **kwargs)


def serve_weight_readers(model: nn.Module, selection: Selection) -> None:
    """Let the modules of `model` that read weights of adapted layers see the adapted weights.

    It is called again after an adapter was attached or removed.

    Args:
        model: model with adapters.
        selection: active adapters of the model.

    Raises:
        MethodError: a module only reads the weight of a layer, and an adapter of this layer changes no weight; or a
            module changes weights of layers in place.
    """
    remove_weight_readers(model)
    modules = dict(base_modules(model))
    for path, layers in _readers(modules).items():
        module = modules[path]
        forward = _ReaderForward(module, layers, selection, is_fused=isinstance(module, _FUSED_ENCODERS))
        adapted_forward: Any = vars(module).get(forward_attribute(module))
        if isinstance(adapted_forward, AdaptedForward):  # inside the adapters of the module itself
            forward.original = adapted_forward.original
            adapted_forward.original = OriginalForward(module)
            adapted_forward.original.replaced = forward
        else:
            vars(module)[forward_attribute(module)] = forward


def _readers(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Return the adapted layers whose weights a module reads, by path, for each path of such a module.

    Raises:
        MethodError: see `serve_weight_readers`.
    """
    readers: dict[str, dict[str, Any]] = {}
    for reader, path in _pairs(modules):
        module, layer, relative = modules[reader], modules[path], path[len(reader) :].removeprefix(".")
        kind: Any = type(module)
        if (method := changes_weights(kind)) is not None and _rescales(module):
            raise MethodError(
                f"{kind.__name__}.{method} changes the weights of its layers in place, and adapters on {path} "
                "cannot follow that; this model can have no adapter there"
            )
        read = weights_read(kind)
        if isinstance(module, _FUSED_ENCODERS):
            readers.setdefault(reader, {})
        elif relative in read or ANY in read:
            if not read.get(relative, True):
                _check_changes_weights(path, layer, module)
            readers.setdefault(reader, {})[path] = layer
    return readers


def _pairs(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Yield the path of every adapted layer with the path of each module around it, as (module, layer)."""
    for path, layer in modules.items():
        if isinstance(vars(layer).get(forward_attribute(layer)), AdaptedForward):
            parts = path.split(".") if path else []
            for end in range(len(parts)):
                if (reader := ".".join(parts[:end])) in modules:  # else a module with two paths
                    yield reader, path


def layers_read(model: nn.Module) -> list[str]:
    """Return the paths of the adapted layers that the model does not call, because a module reads their weights.

    Adapters that are only modules around such layers, as those of other libraries, have no effect there.
    """
    modules, found = dict(base_modules(model)), set()
    for reader, path in _pairs(modules):
        module, relative = modules[reader], path[len(reader) :].removeprefix(".")
        kind: Any = type(module)
        is_called = weights_read(kind).get(relative, True) and relative not in _CALLED_IF_QUANTIZED
        if isinstance(module, _FUSED_ENCODERS) or not is_called:
            found.add(path)
    return [path for path in modules if path in found]


def remove_weight_readers(model: nn.Module) -> None:
    """Undo `serve_weight_readers`."""
    for _, module in base_modules(model):
        without_reader(module)


def without_reader(module: nn.Module) -> None:
    """Restore the forward of a module that may be one of the readers, in place."""
    forward: Any = vars(module).get(forward_attribute(module))
    if isinstance(forward, _ReaderForward):
        restore_forward(module, forward.original.replaced)
    elif isinstance(getattr(getattr(forward, "original", None), "replaced", None), _ReaderForward):
        forward.original = forward.original.replaced.original


def _rescales(module: nn.Module) -> bool:
    """Return whether a model that may change its weights in place does: RWKV has a setting for that."""
    return bool(getattr(getattr(module, "config", None), "rescale_every", 1))


def _check_changes_weights(path: str, layer: Any, module: nn.Module) -> None:
    unsuitable = [name for name, adapter in layer.peftly.items() if not _changes_weights(adapter)]
    if unsuitable or is_quantized(layer):
        reason = "its weight is quantised" if is_quantized(layer) else f"{unsuitable[0]!r} changes no weight there"
        raise MethodError(
            f"{type(module).__name__} reads the weight of {path} instead of calling the layer, and {reason}: leave the "
            "layer out of the adapter (target_modules), or use a method that changes weights, as lora"
        )


def _changes_weights(adapter: nn.Module) -> bool:
    return getattr(type(adapter), "merge_into", None) is not LayerAdapter.merge_into


@contextmanager
def _readable(path: str, layer: Any, selection: Selection) -> Iterator[None]:
    """Let others read the parameters of `layer` with the active adapters merged; its calls stay as they are."""
    names = [frozenset(layer.peftly) & active for active in set(selection.active.sets)]
    forward = vars(layer)["forward"]
    if not any(names):
        yield
        return
    own = layer._parameters
    merged = _MergedParameters(own, path, layer, names)
    layer._parameters, vars(layer)["forward"] = merged, _ForwardOfOwn(forward, layer, own)
    try:
        yield
    finally:
        layer._parameters, vars(layer)["forward"] = own, forward


class _ForwardOfOwn:
    """Forward of an adapted layer that computes with the layer's own parameters, while others read merged ones."""

    def __init__(self, forward: Any, layer: Any, own: dict[str, Any]) -> None:
        self.forward, self.layer, self.own = forward, layer, own

    @property
    def original(self) -> OriginalForward:
        """Forward of the layer without adapters."""
        original: OriginalForward = self.forward.original
        return original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the layer with its active adapters."""
        merged, self.layer._parameters = self.layer._parameters, self.own
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.layer._parameters = merged


class _MergedParameters(dict[str, Any]):
    """Parameters of a layer, of which `layer.weight` and `layer.bias` are computed with the adapters when read."""

    def __init__(self, own: Mapping[str, Any], path: str, layer: Any, names: list[AdapterNames]) -> None:
        super().__init__(own)
        self.own, self.path, self.layer, self.names = own, path, layer, names
        self.merged: dict[str, Any] = {}
        self.is_quantized = is_quantized(layer)
        self.forward: Any = vars(layer)[forward_attribute(layer)]

    def __getitem__(self, name: str) -> Any:
        if not self.merged:
            self._check()
            if isinstance(self.forward, WatchedForward):
                self.forward.note_call()
            self.merged = _merged(self.layer, self.own, self.names[0])
        return self.merged[name]

    def _check(self) -> None:
        """Raise an error if no weight has the effect of the active adapters."""
        adapters = [self.layer.peftly[name] for name in self.layer.peftly if name in self.names[0]]
        reason = None
        if len(set(self.names)) > 1:
            reason = "so all examples of a batch must have the same adapters"
        elif not all(_changes_weights(adapter) for adapter in adapters) or self.is_quantized:
            reason = "and an adapter there changes no weight: leave the layer out of it (target_modules)"
        elif len(adapters) > 1 and not all(adapter.only_adds for adapter in adapters):
            reason = f"and no weight has the joint effect of {' and '.join(self.layer.peftly)}: use one of them"
        elif any(adapter.training and getattr(adapter, "dropout", 0) for adapter in adapters):
            reason = "so there is no input to drop: set dropout to 0, or leave the layer out (target_modules)"
        if reason is not None:
            raise MethodError(f"this model reads the weight of {self.path} instead of calling the layer, {reason}")


def _merged(layer: Any, own: Mapping[str, Any], names: AdapterNames) -> dict[str, Any]:
    """Return the parameters of `layer` with the adapters `names` merged, with gradients for the adapters.

    Args:
        layer: adapted layer.
        own: parameters of the layer.
        names: names of the adapters.
    """
    before = layer._parameters
    layer._parameters = {
        name: None if value is None else value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
        for name, value in own.items()
    }
    try:
        for name, adapter in layer.peftly.items():
            if name in names:
                adapter.merge_into(layer)
        return {name: None if value is None else layer._parameters[name].to(value.dtype) for name, value in own.items()}
    finally:
        layer._parameters = before


class _FusedCalls:
    """Switch of torch's fused calls of attention layers, one for all threads.

    Attributes:
        off: number of calls for which they are off.
        before: whether they were on before the first of these calls.
    """

    def __init__(self) -> None:
        self.off, self.before = 0, True

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let torch's attention layers call their submodules while the block runs."""
        with _LOCK:
            if not self.off:
                self.before = torch.backends.mha.get_fastpath_enabled()
            self.off += 1
            torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            with _LOCK:
                self.off -= 1
                if not self.off:
                    torch.backends.mha.set_fastpath_enabled(self.before)


_FUSED_CALLS = _FusedCalls()
