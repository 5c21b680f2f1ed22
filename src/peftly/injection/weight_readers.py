"""Modules that read the weights of adapted layers instead of calling the layers, and get the adapted weights.

`nn.MultiheadAttention` reads `out_proj.weight`, and in evaluation mode `nn.TransformerEncoderLayer` reads the weights
of all its layers for one fused call. Adapters run in the forward of a layer, which such a module does not call. So
while it runs, the weights that it reads are those of the layer with its active adapters merged, and torch's fused calls
are off. The same holds for a module that calls another method of a layer than its forward, or a method of a module
that reads the weights.
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
from peftly.injection.adapted_forward import LAYER_ADAPTERS, AdaptedForward, OriginalForward
from peftly.injection.layers import base_modules
from peftly.injection.merged_parameters import changes_weight, readable
from peftly.injection.selection import Selection
from peftly.injection.weight_uses import ANY, attributes_used, changes_weights, methods_with, weights_read
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
                stack.enter_context(readable(path, layer, self.selection))
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

    A module also reads those that it reaches through a method, other than the forward, of a module inside it.

    Raises:
        MethodError: see `serve_weight_readers`.
    """
    readers: dict[str, dict[str, Any]] = {}
    for path, around in _surrounded(modules):
        layer, reached = modules[path], [path]
        for reader in around:
            module, relative = modules[reader], _relative(path, reader)
            kind: Any = type(module)
            if (method := changes_weights(kind)) is not None and _rescales(module):
                raise MethodError(
                    f"{kind.__name__}.{method} changes the weights of its layers in place, and adapters on {path} "
                    "cannot follow that; this model can have no adapter there"
                )
            read = weights_read(kind)
            if isinstance(module, _FUSED_ENCODERS):
                readers.setdefault(reader, {})
                continue
            if relative in read or ANY in read:
                if not read.get(relative, True):
                    _check_changes_weights(path, layer, module)
            elif not any(_calls_methods(modules, reader, inner, path) for inner in reached):
                continue
            readers.setdefault(reader, {})[path] = layer
            reached.append(reader)
    return readers


def _calls_methods(modules: Mapping[str, nn.Module], outer: str, inner: str, path: str) -> bool:
    """Return whether a module uses a method of a module inside it that reads the layer at `path`, or is the layer."""
    kind: Any = type(modules[inner])
    outer_kind: Any = type(modules[outer])
    names = _names(modules[inner]) if inner == path else [_relative(path, inner).partition(".")[0]]
    prefixes, used = (_relative(inner, outer), ANY), attributes_used(outer_kind)
    return any(f"{prefix}.{method}" in used for method in methods_with(kind, frozenset(names)) for prefix in prefixes)


def _names(layer: nn.Module) -> list[str]:
    """Return the names of the parameters and modules of an adapted layer in its base."""
    return [name for name in (*layer._parameters, *layer._modules) if name != LAYER_ADAPTERS]


def _relative(path: str, around: str) -> str:
    return path[len(around) :].removeprefix(".")


def _surrounded(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, list[str]]]:
    """Yield the path of every adapted layer with the paths of the modules around it, the innermost first."""
    for path, layer in modules.items():
        if isinstance(vars(layer).get(forward_attribute(layer)), AdaptedForward):
            parts = path.split(".") if path else []
            around = [".".join(parts[:end]) for end in reversed(range(len(parts)))]
            yield path, [reader for reader in around if reader in modules]  # not all of a module with two paths


def layers_read(model: nn.Module) -> list[str]:
    """Return the paths of the adapted layers that the model does not call, because a module reads their weights.

    Adapters that are only modules around such layers, as those of other libraries, have no effect there.
    """
    modules, found = dict(base_modules(model)), set()
    for path, around in _surrounded(modules):
        for reader in around:
            kind: Any = type(modules[reader])
            relative = _relative(path, reader)
            is_called = weights_read(kind).get(relative, True) and relative not in _CALLED_IF_QUANTIZED
            if issubclass(kind, _FUSED_ENCODERS) or not is_called:
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
    unsuitable = [name for name, adapter in layer.peftly.items() if not changes_weight(adapter)]
    if unsuitable or is_quantized(layer):
        reason = "its weight is quantised" if is_quantized(layer) else f"{unsuitable[0]!r} changes no weight there"
        raise MethodError(
            f"{type(module).__name__} reads the weight of {path} instead of calling the layer, and {reason}: leave the "
            "layer out of the adapter (target_modules), or use a method that changes weights, as lora"
        )


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
