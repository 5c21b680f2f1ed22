"""Check of whether changed layers reach the output of a model: are they called, and do they get gradients?

An adapter works in the forward of a layer. A module that reads the weight of the layer instead of calling it gets the
weight of the base, so the adapter is trained in vain, or answers as the base does. `weight_readers` serves the modules
whose source code shows such a read. The first calls of the model find the others.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import forward_attribute
from peftly.injection.adapted_forward import AdaptedForward, WatchedForward
from peftly.injection.layers import base_modules, owner
from peftly.injection.module_copies import copied_modules
from peftly.injection.selection import AdapterNames, Selection
from peftly.injection.targets import is_within
from peftly.utils import warn

__all__ = ["ReachCheck", "layers_without_gradient", "peft_layer", "some_paths"]

_LOCK = threading.Lock()


class ReachCheck:
    """Check of the first call of a model in training and in evaluation mode, with and without gradients.

    Attributes:
        selection: active adapters of the model.
        checked: modes in which the model was called, with the active adapters.
        watched: layers that are watched in the present call, with their parameters, by path; None: no call is watched.
        thread: thread of this call; calls of others run beside it.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self.selection = selection
        self.checked: set[tuple[bool, bool, AdapterNames]] = set()
        self.watched: dict[str, tuple[Any, dict[str, Any]]] | None = None
        self.thread: int | None = None
        self.handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def begin_again(self) -> None:
        """Check the next calls, because the adapters of the model have changed."""
        self.checked.clear()

    def _before(self, model: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        names = self.selection.active.names
        mode = (model.training, torch.is_grad_enabled(), names)
        if mode in self.checked:
            return
        if (path := peft_layer(model)) is not None:
            raise MethodError(
                f"PEFT has put an adapter of its own on this model ({path}), and froze those of peftly: leave out "
                "peft_config and get_peft_model"
            )
        with _LOCK:
            if self.watched is not None:
                return
            self.thread, self.watched = threading.get_ident(), {}
        self.checked.add(mode)
        for path, layer in base_modules(model):
            forward = vars(layer).get(forward_attribute(layer))
            if isinstance(forward, AdaptedForward) and not names.isdisjoint(forward.adapters):
                WatchedForward.watch(forward)
                self.watched[path] = (layer, layer._parameters)
                layer._parameters = _ReadParameters(layer._parameters)

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.watched is None or self.thread != threading.get_ident():
            return
        watched, self.watched = self.watched, None
        read: list[str] = []
        not_called: list[str] = []
        copied = [path for name in self.selection.active.names for path in copied_modules(model, name)]
        for path, (layer, parameters) in watched.items():
            record = layer._parameters
            for name in parameters.keys() - record.keys():
                del parameters[name]
            parameters.update(record)
            layer._parameters = parameters  # complete: other threads may call the layer
            if WatchedForward.was_called(vars(layer).get(forward_attribute(layer))):
                continue
            was_read = getattr(record, "was_read", False) and not is_within(path, copied)
            (read if was_read else not_called).append(path)
        if output is None:  # the call has failed, or the model returns nothing
            return
        if read:
            raise MethodError(
                f"{type(model).__name__} reads the weights of {some_paths(read)} instead of calling these layers, so "
                "an adapter there has no effect: leave them out of the adapter (target_modules)"
            )
        if not_called and model.training and torch.is_grad_enabled():
            warn(
                f"the first training call did not use {some_paths(not_called)}: an adapter is not trained where the "
                "model does not call the layer",
                stacklevel=2,
            )


class _ReadParameters(dict[str, Any]):
    """Parameters of a layer that record whether one of them was read by its name.

    Attributes:
        was_read: whether a parameter was read.
    """

    was_read = False

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self.was_read = self.was_read or value is not None
        return value


def peft_layer(model: nn.Module) -> str | None:
    """Return the path of the first module of a model that is of a class of PEFT; None: there is none."""
    return next((path for path, module in model.named_modules() if type(module).__module__.startswith("peft.")), None)


def layers_without_gradient(parameters: Mapping[str, nn.Parameter]) -> tuple[list[str], int]:
    """Return the paths of the changed layers that got no gradient other than zero, and the number of changed layers.

    Args:
        parameters: trained parameters by their names in the model, after a backward pass.
    """
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    sizes = torch._foreach_norm(list(gradients.values())) if gradients else ()
    reached = {_layer_of(name) for name, size in zip(gradients, sizes, strict=True) if float(size) != 0}
    layers = dict.fromkeys(map(_layer_of, parameters))
    return [path for path in layers if path not in reached], len(layers)


def _layer_of(name: str) -> str:
    """Return the path of the layer that a parameter of an adapter changes."""
    return name.partition(".peftly.")[0] if owner(name) else name.rpartition(".")[0]


def some_paths(paths: Sequence[str]) -> str:
    """Return paths for a message, of which there may be many."""
    return f"{', '.join(paths[:3])} and {len(paths) - 3} more" if len(paths) > 3 else ", ".join(paths)
