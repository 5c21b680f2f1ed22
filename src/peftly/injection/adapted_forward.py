"""Forward of an adapted layer: it runs the active adapters around the original forward, for each batch element."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import forward_attribute
from peftly.injection.caching import cached, is_caching
from peftly.injection.nested_tensors import concatenate_elements, map_tensors, select_elements
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection

__all__ = [
    "LAYER_ADAPTERS",
    "SHORT_CALL_TOKENS",
    "AdaptedForward",
    "FusedForward",
    "OriginalForward",
    "WatchedForward",
]

LAYER_ADAPTERS = "peftly"
"""Name of the submodule of an adapted layer that holds its adapters."""

FusedForward = Callable[["OriginalForward", Tensor, ActiveAdapters], Tensor | None]
"""Function of the original forward of a layer, its input and its active adapters that returns the new output, or None
for an input that it does not support."""

SHORT_CALL_TOKENS = 256
"""Most tokens of a short call, in all its sequences. Up to this number stacked LoRA factors were faster in bf16 and in
fp32, with 2 adapters and with 16."""


class OriginalForward:
    """Forward of a layer before it was adapted, which may be set on the instance (as accelerate's device hooks are)."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.replaced: Callable[..., Tensor] | None = vars(layer).get(forward_attribute(layer))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the layer without adapters."""
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        output: Tensor = type(self.layer).forward(self._caller(), *args, **kwargs)
        return output

    def _caller(self) -> nn.Module:
        """Return the layer; a container as it was before it was adapted, because its forward calls all its children."""
        if not isinstance(self.layer, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return self.layer
        kind, children = type(self.layer), dict(self.layer._modules)
        children.pop(LAYER_ADAPTERS, None)
        container: nn.Module = kind.__new__(kind)
        vars(container).update({**vars(self.layer), "_modules": children})
        return container

    @property
    def function(self) -> Callable[..., Any]:
        """The forward itself, for its signature."""
        return partial(type(self.layer).forward, self.layer) if self.replaced is None else self.replaced

    def is_plain(self, kind: type[nn.Module]) -> bool:
        """Whether the layer is exactly of the class `kind`, with the forward of this class."""
        return type(self.layer) is kind and self.replaced is None


class AdaptedForward:
    """Replacement of `layer.forward` that runs the adapters in the order of attachment, innermost first.

    An object and not a closure, so that deepcopy and pickle copy it with the layer.
    """

    def __init__(self, layer: Any, adapters: Any, selection: Selection) -> None:
        self.layer = layer
        self.adapters = adapters  # not `layer.peftly` in each call: the attributes of modules are slow to look up
        self.selection = selection
        self.original = OriginalForward(layer)

    @property
    def __signature__(self) -> inspect.Signature:
        """Signature of the layer's own forward, which its callers may look up."""
        return inspect.signature(self.original.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the layer with the active adapters."""
        if kwargs and not args:
            args = self._input_by_keyword(kwargs)
        active = self.selection.active
        if len(args) == 1 and not kwargs and (output := self._fused_forward(active, args[0])) is not None:
            return output
        if len(active.sets) == 1:
            return self._run(active.sets[0], *args, **kwargs)
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim), None)
        if x is None:
            raise MethodError(
                f"a {type(self.layer).__name__} that gets no tensor cannot have different adapters within a batch; "
                "call the model once for each adapter"
            )
        batch_size = x.shape[0]
        if batch_size % len(active.sets):
            raise MethodError(
                f"adapters were given for {len(active.sets)} batch elements and this call has {batch_size}; give one "
                "entry for each (tensors that all batch elements share, as T5's relative positions, cannot differ "
                "between them)"
            )
        groups = active.groups(batch_size, frozenset(self.adapters), x.device)
        if len(groups) == 1:
            return self._run(groups[0].names, *args, **kwargs)
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise MethodError(
                f"a {type(self.layer).__name__} with a key-value cache cannot have different adapters within a batch; "
                "call the model once for each adapter"
            )
        outputs = []
        for group in groups:
            group_args = [select_elements(value, batch_size, group.indices) for value in args]
            group_kwargs = {key: select_elements(value, batch_size, group.indices) for key, value in kwargs.items()}
            with self.selection.use(group.active):
                output = self._run(group.names, *group_args, **group_kwargs)
            outputs.append(output)
        order = torch.cat([group.indices for group in groups]).argsort()
        sizes = [len(group.indices) for group in groups]
        return map_tensors(partial(concatenate_elements, sizes=sizes, order=order), *outputs)

    def _input_by_keyword(self, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Take the input of the layer out of keyword arguments, as adapters expect it first.

        Returns:
            The value of the first parameter of the layer's forward, or nothing if it was not given or has no position.
        """
        first = next(iter(self.__signature__.parameters.values()), None)
        if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.name not in kwargs:
            return ()
        return (kwargs.pop(first.name),)

    def _fused_forward(self, active: ActiveAdapters, x: Any) -> Tensor | None:
        """Return the output of all batch elements at once, or None where the adapters cannot be fused."""
        if not is_caching() or not isinstance(x, Tensor):
            return None
        is_short = x.numel() <= SHORT_CALL_TOKENS * x.shape[-1]
        fused_forward = cached(
            (self, active.names, active.differ, x.dtype, is_short, self.adapters.training),
            x.device,
            partial(self._make_fused_forward, active, x, is_short),
            # Factors that stay among the large tensors of a long call would fragment the heap.
            should_store=None if is_short else _is_none,
        )
        return None if fused_forward is None else fused_forward(self.original, x, active)

    def _make_fused_forward(self, active: ActiveAdapters, x: Tensor, is_short: bool) -> FusedForward | None:
        adapters = {name: adapter for name, adapter in tuple(self.adapters.items()) if name in active.names}
        kinds: set[Any] = {type(adapter) for adapter in adapters.values()}
        if len(kinds) != 1:
            return None
        fused_forward: FusedForward | None = kinds.pop().fused_forward(
            self.layer, adapters, x, differ=active.differ, is_short=is_short
        )
        return fused_forward

    def _run(self, names: AdapterNames, *args: Any, **kwargs: Any) -> Tensor:
        forward: Callable[..., Tensor] = self.original
        for name, adapter in tuple(self.adapters.items()):  # another thread may attach adapters
            if name in names and adapter.has_forward:
                forward = partial(adapter.run, self.layer, forward)
        return forward(*args, **kwargs)


class WatchedForward(AdaptedForward):
    """Forward of an adapted layer that notes its first call."""

    @classmethod
    def watch(cls, forward: AdaptedForward) -> None:
        """Note the next call of a forward."""
        forward.__class__ = cls

    @classmethod
    def was_called(cls, forward: Any) -> bool:
        """Return whether a watched forward was called, and watch it no longer."""
        if not isinstance(forward, cls):
            return True
        forward.note_call()
        return False

    def note_call(self) -> None:
        """Note a call: the forward is an ordinary one from then on."""
        self.__class__ = AdaptedForward  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `AdaptedForward`."""
        self.note_call()
        return self(*args, **kwargs)


def _is_none(value: Any) -> bool:
    return value is None
