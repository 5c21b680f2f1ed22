"""Change the forward of single layers of a model in place: run adapters around it, and restore it.

An adapted layer stays the same module object with the same parameters under the same names, so checkpoints, tied
weights and other hooks continue to work. It gets a submodule `peftly`, which holds one `LayerAdapter` for each adapter,
and a `forward` that runs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import Cache

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import NeverOffloaded, forward_attribute, restore_forward
from peftly.injection.caching import cached, invalidate_cached_tensors, is_caching
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection, selection_of

__all__ = [
    "LAYER_ADAPTERS",
    "SHORT_CALL_TOKENS",
    "AdaptedForward",
    "LayerAdapter",
    "OriginalForward",
    "WatchedForward",
    "adapted_layers",
    "add_layer_adapter",
    "base_modules",
    "map_tensors",
    "original_forward",
    "override_method",
    "owner",
    "remove_layer_adapters",
    "restore_method",
]

LAYER_ADAPTERS = "peftly"

FusedForward = Callable[["OriginalForward", Tensor, ActiveAdapters], Tensor | None]
"""Function of the original forward of a layer, its input and its active adapters that returns the new output, or None
for an input that it does not support."""

SHORT_CALL_TOKENS = 256
"""Most tokens of a short call, in all its sequences. Up to this number stacked LoRA factors were faster in bf16 and in
fp32, with 2 adapters and with 16."""


class LayerAdapter(nn.Module):
    """Part of one adapter at one layer."""

    _hf_hook = NeverOffloaded()

    is_outermost: ClassVar[bool] = False
    """Whether it runs outside of all other adapters of its layer, in any order of attachment."""

    has_forward: ClassVar[bool] = True
    """Whether it takes part in the forward of the layer."""

    only_adds: bool = False
    """Whether it adds a term to the output of the layer that does not depend on the parameters of the layer."""

    def children(self) -> Iterator[nn.Module]:
        """See `torch.nn.Module.children`."""
        return iter(self._modules.values())  # type: ignore[arg-type]

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return no module: accelerate, which asks nobody else for modules to offload, would offload them."""
        return iter(())

    def run(self, layer: nn.Module, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the new output of the layer for its input `x`.

        Args:
            layer: adapted module.
            inner: forward of the layer without this adapter: an `OriginalForward`, or the `run` of an earlier adapter.
            x: input of the layer.
            args, kwargs: further arguments of the layer.
        """
        raise NotImplementedError

    def merge_into(self, layer: Any) -> None:
        """Merge the adapter into the parameters of the layer in place, which are in fp32 or wider here."""
        raise NotImplementedError

    @classmethod
    def fused_forward(
        cls, layer: nn.Module, adapters: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        """Return a function that computes the output of all batch elements at once, valid while no weight changes.

        None where there is no such function: then `run` computes the outputs, in groups that have the same adapters.

        Args:
            layer: adapted module.
            adapters: all adapters of this class that some batch element has, by name.
            x: an input of the layer.
            differ: whether batch elements have different ones of these adapters.
            is_short: whether the call has at most `SHORT_CALL_TOKENS`, so that the function is cached.
        """
        return None


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
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim)
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
            group_args = [_select(value, batch_size, group.indices) for value in args]
            group_kwargs = {key: _select(value, batch_size, group.indices) for key, value in kwargs.items()}
            with self.selection.use(group.active):
                output = self._run(group.names, *group_args, **group_kwargs)
            outputs.append(output)
        order = torch.cat([group.indices for group in groups]).argsort()
        sizes = [len(group.indices) for group in groups]
        return map_tensors(partial(_concatenated, sizes=sizes, order=order), *outputs)

    def _input_by_keyword(self, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Take the input of the layer out of keyword arguments, as adapters expect it first.

        Returns:
            The value of the first parameter of the layer's forward, or nothing if it was not given or has no position.
        """
        first = next(iter(self.__signature__.parameters.values()), None)
        if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.name not in kwargs:
            return ()
        return (kwargs.pop(first.name),)

    def _fused_forward(self, active: ActiveAdapters, x: Tensor) -> Tensor | None:
        """Return the output of all batch elements at once, or None where the adapters cannot be fused."""
        if not is_caching():
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
        kinds = {type(adapter) for adapter in adapters.values()}
        if len(kinds) != 1:
            return None
        kind: type[LayerAdapter] = kinds.pop()
        return kind.fused_forward(self.layer, adapters, x, differ=active.differ, is_short=is_short)

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


def map_tensors(function: Callable[..., Tensor], *values: Any) -> Any:
    """Return `function` of tensors, or of the tensors inside equal tuples, lists and dictionaries of them.

    Of values of any other kind, such as None, the first is returned.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, Mapping):  # and the outputs of transformers' modules
        contents = {key: map_tensors(function, *(value[key] for value in values)) for key in first}
        return type(first)(contents)  # type: ignore[call-arg]
    if isinstance(first, tuple | list):
        items = [map_tensors(function, *each) for each in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _concatenated(*outputs: Tensor, sizes: list[int], order: Tensor) -> Tensor:
    """Return outputs of groups of batch elements as one batch.

    Args:
        outputs: output of each group.
        sizes: number of batch elements of each group.
        order: for each batch element, its index in the groups laid end to end, (batch,).
    """
    # A layer may return one batch element that stands for all (BART's positions).
    expanded = [
        output.expand(size, *output.shape[1:]) if output.shape[0] == 1 else output
        for output, size in zip(outputs, sizes, strict=True)
    ]
    return torch.cat(expanded).index_select(0, order)


def _select(value: Any, batch_size: int, indices: Tensor) -> Any:
    """Return the batch elements at `indices` of the batched tensors in `value`, and any other value as it is."""
    return map_tensors(
        lambda tensor: tensor.index_select(0, indices) if tensor.ndim and tensor.shape[0] == batch_size else tensor,
        value,
    )


def add_layer_adapter(model: nn.Module, layer: Any, name: str, adapter: LayerAdapter) -> None:
    """Attach the part `adapter` of the adapter `name` to `layer`, a module of `model`.

    Raises:
        MethodError: the adapter changes this layer already.
    """
    if name in getattr(layer, LAYER_ADAPTERS, {}):
        path = next(path for path, module in model.named_modules() if module is layer)
        raise MethodError(f"{path} would be changed twice by one adapter; take it out of one of the two settings")
    if not hasattr(layer, LAYER_ADAPTERS):
        layer.peftly = nn.ModuleDict().train(layer.training)
    attribute = forward_attribute(layer)
    if adapter.has_forward and not isinstance(vars(layer).get(attribute), AdaptedForward):
        setattr(layer, attribute, AdaptedForward(layer, layer.peftly, selection_of(model)))
    adapter.train(layer.training)
    outermost = {}
    if not adapter.is_outermost:
        outermost = {other: module for other, module in layer.peftly.items() if module.is_outermost}
    inner = {other: module for other, module in layer.peftly.items() if other not in outermost}
    # In one assignment: another thread may call the layer.
    layer.peftly._modules = {**inner, name: adapter, **outermost}
    invalidate_cached_tensors()


def original_forward(layer: Any) -> OriginalForward:
    """Return the forward of an adapted layer without adapters."""
    original: OriginalForward = vars(layer)[forward_attribute(layer)].original
    return original


def remove_layer_adapters(model: nn.Module, name: str) -> None:
    """Remove adapter `name` from every layer of `model`; a layer without adapters gets its original forward back."""
    for _, layer, adapter in list(adapted_layers(model, name)):
        del layer.peftly[name]
        if adapter.has_forward and not any(other.has_forward for other in layer.peftly.values()):
            restore_forward(layer, original_forward(layer).replaced)
        if not len(layer.peftly):
            del layer.peftly
    invalidate_cached_tensors()


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of every module of `model` that no adapter has added, in model order.

    The modules of adapters are not visited, so the time does not depend on the number of adapters.
    """
    seen: set[nn.Module] = set()
    pending = [("", model)]
    while pending:
        path, module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        children = [
            (f"{path}.{name}" if path else name, child)
            for name, child in module.named_children()
            if name != LAYER_ADAPTERS
        ]
        pending += reversed(children)


def adapted_layers(model: nn.Module, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the layer and the `LayerAdapter` of every layer that adapter `name` changes, in model order."""
    for path, layer in base_modules(model):
        if LAYER_ADAPTERS in layer._modules:
            adapters = layer._modules[LAYER_ADAPTERS]
            if isinstance(adapters, nn.ModuleDict) and name in adapters:
                yield path, layer, adapters[name]


def owner(path: str) -> str:
    """Return the adapter of a parameter, from the path of the parameter in the model; empty for those of the base."""
    parts = path.split(".")
    return parts[parts.index(LAYER_ADAPTERS) + 1] if LAYER_ADAPTERS in parts else ""


def override_method(model: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace the method `name` of this one `model`; `restore_method` undoes it.

    The replacement should be an object that holds what it needs, so that deepcopy and pickle copy it with the model.
    """
    replacement.shadowed = model.__dict__.get(name)  # type: ignore[attr-defined]
    setattr(model, name, replacement)


def restore_method(model: Any, name: str) -> None:
    """Undo `override_method`: restore the previous method, on the instance or from its class."""
    shadowed = model.__dict__.pop(name).shadowed
    if shadowed is not None:
        setattr(model, name, shadowed)
