"""Change the forward of single layers of a model in place: run adapters around it, and restore it.

An adapted layer stays the same module object with the same parameters under the same names, so checkpoints, tied
weights and other hooks continue to work. It gets a submodule `peftly`, which holds one `LayerAdapter` for each adapter,
and a `forward` that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.injection.caching import cached, invalidate_cached_tensors, is_caching
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection, selection_of

__all__ = [
    "LAYER_ADAPTERS",
    "SHORT_CALL_TOKENS",
    "LayerAdapter",
    "OriginalForward",
    "adapted_layers",
    "add_layer_adapter",
    "base_modules",
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


class _AccelerateHook:
    """Descriptor that undoes accelerate's hook on the part of an adapter, so that the part is never offloaded.

    accelerate loads the weights of a module in calls of the module, and parts are not called.
    """

    def __get__(self, part: nn.Module | None, owner: type[nn.Module]) -> Any:
        raise AttributeError("_hf_hook")

    def __set__(self, part: nn.Module, hook: Any) -> None:
        hook.detach_hook(part)
        for tensor in part.parameters(recurse=False):
            tensor.data = tensor.detach().clone()  # the tensor may be mapped from a file of accelerate
        part.to(getattr(hook, "execution_device", None))


class LayerAdapter(nn.Module):
    """Part of one adapter at one layer."""

    _hf_hook = _AccelerateHook()

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
        self.replaced: Callable[..., Tensor] | None = vars(layer).get(_forward_attribute(layer))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the layer without adapters."""
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        output: Tensor = type(self.layer).forward(self.layer, *args, **kwargs)
        return output

    def is_plain(self, kind: type[nn.Module]) -> bool:
        """Whether the layer is exactly of the class `kind`, with the forward of this class."""
        return type(self.layer) is kind and self.replaced is None


class _AdaptedForward:
    """Replacement of `layer.forward` that runs the adapters in the order of attachment, innermost first.

    An object and not a closure, so that deepcopy and pickle copy it with the layer.
    """

    def __init__(self, layer: Any, adapters: Any, selection: Selection) -> None:
        self.layer = layer
        self.adapters = adapters  # not `layer.peftly` in each call: the attributes of modules are slow to look up
        self.selection = selection
        self.original = OriginalForward(layer)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the layer with the active adapters."""
        active = self.selection.active
        if not (args or kwargs) and (output := self._fused_forward(active, x)) is not None:
            return output
        if len(active.sets) == 1:
            return self._run(active.sets[0], x, *args, **kwargs)
        batch_size = x.shape[0]
        if batch_size % len(active.sets):
            raise MethodError(
                f"adapters were given for {len(active.sets)} batch elements and this call has {batch_size}; give one "
                "entry for each (tensors that all batch elements share, as T5's relative positions, cannot differ "
                "between them)"
            )
        groups = active.groups(batch_size, frozenset(self.adapters), x.device)
        if len(groups) == 1:
            return self._run(groups[0].names, x, *args, **kwargs)
        outputs = []
        for group in groups:
            group_args = [_select(value, batch_size, group.indices) for value in (x, *args)]
            group_kwargs = {key: _select(value, batch_size, group.indices) for key, value in kwargs.items()}
            with self.selection.use(group.active):
                output = self._run(group.names, *group_args, **group_kwargs)
            # A layer may return one batch element that stands for all (BART's positions).
            outputs.append(output.expand(len(group.indices), *output.shape[1:]) if output.shape[0] == 1 else output)
        order = torch.cat([group.indices for group in groups]).argsort()
        return torch.cat(outputs).index_select(0, order)

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
        adapters = {name: adapter for name, adapter in self.adapters.items() if name in active.names}
        kinds = {type(adapter) for adapter in adapters.values()}
        if len(kinds) != 1:
            return None
        kind: type[LayerAdapter] = kinds.pop()
        return kind.fused_forward(self.layer, adapters, x, differ=active.differ, is_short=is_short)

    def _run(self, names: AdapterNames, *args: Any, **kwargs: Any) -> Tensor:
        forward: Callable[..., Tensor] = self.original
        for name, adapter in self.adapters.items():
            if name in names:
                forward = partial(adapter.run, self.layer, forward)
        return forward(*args, **kwargs)


def _is_none(value: Any) -> bool:
    return value is None


def _select(value: Any, batch_size: int, indices: Tensor) -> Any:
    """Return the batch elements at `indices` of a batched tensor, and any other value as it is."""
    is_batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch_size
    return value.index_select(0, indices) if is_batched else value


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
        if adapter.has_forward:
            setattr(layer, _forward_attribute(layer), _AdaptedForward(layer, layer.peftly, selection_of(model)))
    layer.peftly[name] = adapter.train(layer.training)
    if not adapter.is_outermost:
        outermost = takewhile(lambda other: layer.peftly[other].is_outermost, [*layer.peftly][-2::-1])
        for other in reversed([*outermost]):
            layer.peftly[other] = layer.peftly.pop(other)
    invalidate_cached_tensors()


def original_forward(layer: Any) -> OriginalForward:
    """Return the forward of an adapted layer without adapters."""
    original: OriginalForward = vars(layer)[_forward_attribute(layer)].original
    return original


def _forward_attribute(layer: nn.Module) -> str:
    """Return the attribute for the forward of a layer: accelerate's hooks call the one in `_old_forward`."""
    return "_old_forward" if "_old_forward" in vars(layer) else "forward"


def remove_layer_adapters(model: nn.Module, name: str) -> None:
    """Remove adapter `name` from every layer of `model`; a layer without adapters gets its original forward back."""
    for _, layer, adapter in list(adapted_layers(model, name)):
        del layer.peftly[name]
        if not len(layer.peftly):
            if adapter.has_forward:
                _restore_forward(layer)
            del layer.peftly
    invalidate_cached_tensors()


def _restore_forward(layer: nn.Module) -> None:
    attribute = _forward_attribute(layer)
    replaced = vars(layer).pop(attribute).original.replaced
    if replaced is None and attribute != "forward":  # accelerate has wrapped the adapted forward, and needs one
        replaced = type(layer).forward.__get__(layer)
    if replaced is not None:
        setattr(layer, attribute, replaced)


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
        adapters = layer._modules.get(LAYER_ADAPTERS)
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
