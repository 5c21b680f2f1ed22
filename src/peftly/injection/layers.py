"""Adapters of single layers of a model, in place: attach them, find them, and remove them.

An adapted layer stays the same module object with the same parameters under the same names, so checkpoints, tied
weights and other hooks continue to work. It gets a submodule `peftly`, which holds one `LayerAdapter` for each adapter,
and a `forward` that runs them (`adapted_forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.injection.accelerate_hooks import NeverOffloaded, forward_attribute, restore_forward
from peftly.injection.adapted_forward import LAYER_ADAPTERS, AdaptedForward, FusedForward, OriginalForward
from peftly.injection.caching import invalidate_cached_tensors
from peftly.injection.selection import selection_of

__all__ = [
    "LAYER_ADAPTERS",
    "LayerAdapter",
    "adapted_layers",
    "add_layer_adapter",
    "base_modules",
    "original_forward",
    "owner",
    "remove_layer_adapters",
]


class LayerAdapter(nn.Module):
    """Part of one adapter at one layer."""

    _hf_hook = NeverOffloaded()

    is_outermost: ClassVar[bool] = False
    """Whether it runs outside of all other adapters of its layer, in any order of attachment."""

    has_forward: ClassVar[bool] = True
    """Whether it takes part in the forward of the layer."""

    changes_inside: ClassVar[bool] = False
    """Whether a merge changes the modules inside the layer, too."""

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
