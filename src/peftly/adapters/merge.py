"""Adapters merged into the weights of their base, in memory. Merges into a folder call `merge_adapters`, too."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from peftly.adapters.attachment import detach
from peftly.adapters.base_changes import keep_base_changes
from peftly.adapters.merge_check import check_merged_layer
from peftly.adapters.mergeable import check_mergeable
from peftly.adapters.rollback import ReplacedValues, restored_on_failure
from peftly.adapters.state import attached, check_names, state_of
from peftly.adapters.training_quantization import quantization_advice
from peftly.errors import MethodError
from peftly.injection import (
    LAYER_ADAPTERS,
    BiasCopy,
    adapted_layers,
    base_modules,
    copied_modules,
    is_foreign,
    paths_used,
)
from peftly.utils import warn

__all__ = ["check_weightable", "merge", "merge_adapters", "weight_adapters"]

ModelT = TypeVar("ModelT", bound=nn.Module)


def merge(model: ModelT, name: str | None = None, *, weights: Mapping[str, float] | None = None) -> ModelT:
    """Merge the active adapters, or one, into the weights of the base, in place, and detach them.

    The arithmetic is in fp32 or wider, and the result is rounded once to the dtype of the weight. Before any weight is
    replaced, each layer's outputs with the adapters are compared with those after the merge. Tied weights that merging
    makes different are untied, with a warning: each becomes a tensor of its own.

    Args:
        model: a model with adapters.
        name: name of the adapter, active or not; the others stay on the model. None: the active adapters are merged,
            and the others are detached too, with a warning.
        weights: factors of several adapters by name, instead of `name`: `{"a": 0.7, "b": 0.3}`. For methods that add
            to a weight (LoRA).

    Returns:
        The same model, with merged weights and without the adapters.

    Raises:
        MethodError: the model has no such adapter, no adapter is active, its method or the weights of the base cannot
            be merged, or the outputs of a layer would change. After any exception, Ctrl-C included, the model is
            unchanged.
    """
    if weights is not None and name is not None:
        raise MethodError("give the name of one adapter, or the weights of several; not both")
    names = list(weights) if weights is not None else _active(model) if name is None else [name]
    inactive = [other for other in attached(model) if other not in names] if weights is None and name is None else []
    check_mergeable(model, names, without=inactive)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with restored_on_failure(model), _restored_scalings(model, names), ReplacedValues(size) as before:
        if weights is not None:
            weight_adapters(model, weights)
        with torch.no_grad():
            for path, layer, changes in _mergeable_layers(model, names):
                check_merged_layer(path, layer, changes)
        others = state_of(model).other_quantizations
        lines = [quantization_advice(name, others[name].quantization.kind, model) for name in names if name in others]
        lines += merge_adapters(model, names, before)
        if inactive:
            lines.append(
                f"merged {', '.join(names)}; detached without merging, because it is not active: {', '.join(inactive)} "
                "(to merge all, call peftly.set_adapters(model, *peftly.attached(model)) first)"
            )
            for other in inactive:
                detach(model, other)
        for line in lines:
            warn(line, stacklevel=2)  # an error in some programs
    return model


@contextmanager
def _restored_scalings(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Restore the scalings of adapters if the block raises an error."""
    changes = [change for name in names for _, _, change in adapted_layers(model, name)]
    scalings = [getattr(change, "scaling", None) for change in changes]
    try:
        yield
    except BaseException:
        for change, scaling in zip(changes, scalings, strict=True):
            if scaling is not None:
                change.scaling = scaling
        raise


def _active(model: nn.Module) -> list[str]:
    """Return the names of the adapters that are active in the current context.

    Raises:
        MethodError: no adapter is active, or batch elements have different ones.
    """
    active = state_of(model).selection.active
    if active.differ:
        raise MethodError("batch elements have different adapters here; name the adapter that is to be merged")
    if not active.names:
        raise MethodError(
            "no adapter of this model is active, so there is nothing to merge; call peftly.set_adapters(model, "
            f"{', '.join(map(repr, attached(model)))}) first, or name one adapter"
        )
    return [name for name in attached(model) if name in active.names]


def check_weightable(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Do nothing if these adapters only add to weights or outputs, so that a factor can be applied to each.

    Raises:
        MethodError: an adapter does more than add, a factor is no number, or the model has no such adapter.
    """
    if not weights:
        raise MethodError("weights names no adapter")
    for name in check_names(model, list(weights)):
        if not math.isfinite(weights[name]):
            raise MethodError(f"the weight of {name!r} is {weights[name]}; give a number")
        adapter = attached(model)[name]
        copied = next((path for path, _, change in adapted_layers(model, name) if not change.only_adds), None)
        if not adapter.can_be_weighted or copied is not None:
            method = adapter.config.name
            reason = f"it trains a copy in {copied}" if adapter.can_be_weighted else f"it is {method}"
            raise MethodError(
                f"only adapters that do nothing but add to a weight can be weighted, as LoRA; {name!r}: {reason}"
            )


def weight_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Multiply the scaling of adapters by factors, in place.

    Args:
        model: a model with adapters.
        weights: factors by the names of the adapters.

    Raises:
        MethodError: as for `check_weightable`; the model is then unchanged.
    """
    check_weightable(model, weights)
    for name, weight in weights.items():
        for _, _, change in adapted_layers(model, name):
            change.scaling *= weight


def merge_adapters(model: Any, names: Iterable[str], before: ReplacedValues | None = None) -> list[str]:
    """Merge adapters, which `check_mergeable` has passed, into the weights of `model`, in place, and detach them.

    Args:
        model: a model with adapters.
        names: names of the adapters.
        before: collection of the values that are replaced; None: nobody needs them.

    Returns:
        Lines for the user: which weights were untied.
    """
    names = [*names]
    with torch.no_grad():
        lines = _untie(model, names)
        for _, layer, changes in _mergeable_layers(model, names):
            if before is not None:
                before.keep(_replaceable(layer))
            with _widened(layer):
                for change in changes:
                    change.merge_into(layer)
    keep_base_changes(model)
    for name in names:
        detach(model, name)
    return lines


def _replaceable(layer: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors of a layer of the base that a merge may write into."""
    for _, module in base_modules(layer):
        yield from (tensor for tensor in module.buffers(recurse=False) if tensor.numel())
        for parameter in module.parameters(recurse=False):
            if parameter.numel() and parameter.is_floating_point() and not is_foreign(parameter):  # not quantised
                yield parameter


def _mergeable_layers(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, nn.Module, list[Any]]]:
    """Yield path and module of the layers that adapters change, each with its layer adapters, innermost first.

    Layers inside a module that an adapter replaces by a trained copy are left out: the model does not compute them.
    """
    copied = [f"{path}." for name in names for path in copied_modules(model, name)]
    for path, layer in base_modules(model):
        changes = [change for name, change in getattr(layer, LAYER_ADAPTERS, {}).items() if name in names]
        if changes and not path.startswith(tuple(copied)):
            yield path, layer, changes


@contextmanager
def _widened(layer: nn.Module) -> Iterator[None]:
    """Hold the layer's own parameters in fp32 inside the block; afterwards they are rounded, into the same memory.

    After an error they stay in fp32; see `ReplacedValues`.
    """
    narrow = {
        parameter: parameter.data
        for parameter in layer.parameters(recurse=False)
        if parameter.is_floating_point() and parameter.dtype.itemsize < torch.float32.itemsize
    }
    for parameter, data in narrow.items():
        parameter.data = data.float()
    yield
    for parameter, data in narrow.items():
        wide, parameter.data = parameter.data, data
        parameter.copy_(wide)


class _Owner(NamedTuple):
    """A module that owns a parameter.

    Attributes:
        path: path of the module in the model.
        module: the module.
        attribute: name of the parameter in the module.
    """

    path: str
    module: nn.Module
    attribute: str

    def __str__(self) -> str:
        return f"{self.path}.{self.attribute}"


def _untie(model: Any, names: Sequence[str]) -> list[str]:
    """Give modules that share a parameter one each, if merging makes their values different.

    Returns:
        A line for the user, or nothing.
    """
    groups = _tied(model)
    torn = [group for group in groups if len({_merged_value(model, owner, names) for owner in group}) > 1]
    if not torn:
        return []
    is_in_config = _set_untied(model)
    for group in groups if is_in_config else torn:
        for _, module, attribute in group[1:]:
            parameter = getattr(module, attribute)
            clone = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(module, attribute, clone)
    untied = "; ".join(" and ".join(map(str, group)) for group in torn)
    setting = " (tie_word_embeddings: false)" if is_in_config else ""
    return [f"untied, as merging makes them different: {untied}{setting}"]


def _tied(model: nn.Module) -> list[list[_Owner]]:
    """Return the owners of every parameter that more than one module owns."""
    owners: defaultdict[nn.Parameter, list[_Owner]] = defaultdict(list)
    for path, module in base_modules(model):
        for attribute, parameter in module.named_parameters(recurse=False):
            owners[parameter].append(_Owner(path, module, attribute))
    return [group for group in owners.values() if len(group) > 1]


def _merged_value(model: nn.Module, owner: _Owner, names: Sequence[str]) -> object:
    """Return a key that is equal for owners of one parameter that hold the same value after merging."""
    for name in names:
        for path in copied_modules(model, name):
            if owner.path == path or owner.path.startswith(f"{path}."):
                layer: Any = model.get_submodule(path)
                return layer.peftly[name].copy.get_parameter(str(owner).removeprefix(f"{path}."))
    changes = [change for name, change in getattr(owner.module, LAYER_ADAPTERS, {}).items() if name in names]
    is_changed = any(owner.attribute == "bias" or not isinstance(change, BiasCopy) for change in changes)
    return owner.module if is_changed else None


def _set_untied(model: Any) -> bool:
    """Set `tie_word_embeddings`, one setting for all ties, to false in a model's config; return whether it can be."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "tie_word_embeddings"):
        return False
    # Not for Switch: its forward reads the setting, to scale the input of the head.
    kinds: set[Any] = {type(module) for module in model.modules()}
    if any("config.tie_word_embeddings" in paths_used(kind) for kind in kinds):
        return False
    # Not for T5: its loader ties tensors that its file holds twice with the same values, and no others.
    if type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False}).tie_word_embeddings:
        return False
    for changed in (config, config.get_text_config()):
        changed.tie_word_embeddings = False
    return True
