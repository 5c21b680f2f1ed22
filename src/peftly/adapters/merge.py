"""Fold adapters into the weights of their base. Every merge goes through `merge_adapters`: in memory, or into a folder."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from peftly.adapters.attachment import detach
from peftly.adapters.state import attached, check_names
from peftly.errors import MethodError
from peftly.injection import LAYER_ADAPTERS, BiasCopy, adapted_layers, base_modules, copied_modules
from peftly.kernels import is_quantized
from peftly.methods import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_mergeable", "check_weightable", "merge", "merge_adapters", "weight_adapters"]


def merge(
    model: PreTrainedModel, name: str | None = None, *, weights: Mapping[str, float] | None = None
) -> PreTrainedModel:
    """Fold an adapter, or all of them, into the base's weights, in place, and detach it.

    The arithmetic is in fp32 or wider, and its result is rounded once to the dtype of the weight. Weights that are tied
    and no longer the same are untied, with a warning: each has a tensor of its own then.

    Args:
        model: a model with adapters.
        name: which one; None: all of them.
        weights: instead, several adapters and how much of each: `{"a": 0.7, "b": 0.3}`. For adapters whose changes are
            sums (LoRA).

    Returns:
        The same model, with other weights and no trace of the adapters.

    Raises:
        MethodError: there is no adapter, or its method or the base's weights do not allow it; nothing has changed.
    """
    if weights is not None and name is not None:
        raise MethodError("give the name of one adapter, or the weights of several; not both")
    names = list(weights) if weights is not None else attached(model) if name is None else [name]
    check_mergeable(model, names)
    if weights is not None:
        weight_adapters(model, weights)
    for line in merge_adapters(model, names):
        warnings.warn(line, stacklevel=2)
    return model


def check_mergeable(model: nn.Module, names: Iterable[str]) -> None:
    """Do nothing if weights of the base can stand for these adapters.

    Raises:
        MethodError: a method is no change of weights, a weight is packed, another adapter that stays would work
            otherwise, or there is no such adapter.
    """
    names = check_names(model, list(names))
    for name in names:
        method = attached(model)[name].config.name
        if not METHODS[method].mergeable:
            raise MethodError(
                f"{method} cannot be merged: what it adds is no change of the base's weights; keep the adapter and "
                "load it beside the base instead (peftly.load opens both; peftly export writes it for other tools)"
            )
        _refuse_packed_layers(model, name)
        _refuse_shared_layers(model, name)
        _refuse_hidden_changes(model, name, [other for other in attached(model) if other not in names])


def check_weightable(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Do nothing if all that these adapters do is to add, so that it may be multiplied by a number.

    Raises:
        MethodError: it is not, a weight is no number, or there is no such adapter.
    """
    if not weights:
        raise MethodError("weights names no adapter")
    for name in check_names(model, list(weights)):
        if not math.isfinite(weights[name]):
            raise MethodError(f"the weight of {name!r} is {weights[name]}; give a number")
        adapter = attached(model)[name]
        odd = next((path for path, _, change in adapted_layers(model, name) if not change.only_adds), None)
        if not adapter.is_sum or odd is not None:
            method = adapter.config.name
            reason = f"it trains a copy in {odd}" if adapter.is_sum else f"it is {method}, whose changes are no sums"
            raise MethodError(f"only what is added to a weight can be weighted, as LoRA's products; {name!r}: {reason}")


def weight_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Let what adapters add count so many times from now on.

    Raises:
        MethodError: as `check_weightable` has it; nothing has changed.
    """
    check_weightable(model, weights)
    for name, weight in weights.items():
        for _, _, change in adapted_layers(model, name):
            change.scaling *= weight


def merge_adapters(model: Any, names: Iterable[str]) -> list[str]:
    """Fold adapters that `check_mergeable` has passed into the weights of `model`, in place, and detach them.

    Returns:
        What a person should know of it, in lines: which weights were untied.
    """
    names = [*names]
    with torch.no_grad():
        lines = _untie(model, names)
        for layer, changes in _mergeable_layers(model, names):
            with _widened(layer):
                for change in changes:
                    change.merge_into(layer)
    for name in names:
        detach(model, name)
    return lines


def _mergeable_layers(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Yield the layers that adapters change, each with its changes, innermost first.

    What is inside a module that answers through a copy takes no part in what the model computes.
    """
    copied = [f"{path}." for name in names for path in copied_modules(model, name)]
    for path, layer in base_modules(model):
        changes = [change for name, change in getattr(layer, LAYER_ADAPTERS, {}).items() if name in names]
        if changes and not path.startswith(tuple(copied)):
            yield layer, changes


def _refuse_packed_layers(model: nn.Module, name: str) -> None:
    for path, layer, change in adapted_layers(model, name):
        for inner, part in base_modules(layer):
            where = f"{path}.{inner}" if inner else path
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                raise MethodError(f"{where} is on disk: open the base without a device_map to merge into it")
            if is_quantized(part) and not isinstance(change, BiasCopy):
                raise MethodError(
                    f"{where} is quantised: call peftly.dequantize first, or open the base without quantisation"
                )


def _refuse_shared_layers(model: nn.Module, name: str) -> None:
    for path, layer, _ in adapted_layers(model, name):
        if len(layer.peftly) > 1 and not all(change.only_adds for change in layer.peftly.values()):
            raise MethodError(
                f"{path} is changed by {' and '.join(layer.peftly)} together, which no weight of it can stand for; "
                "detach one of them first"
            )


def _refuse_hidden_changes(model: nn.Module, name: str, others: Sequence[str]) -> None:
    """Refuse if a copy that `name` trains hides changes of `others` inside its module, which would come to light."""
    for path in copied_modules(model, name):
        for other in others:
            for inner, _, _ in adapted_layers(model, other):
                if inner.startswith(f"{path}."):
                    raise MethodError(
                        f"{name} trains a copy of {path}, so what {other} changes in {inner} takes no part, and would "
                        f"once {name} is merged; merge them together, or detach {other} first"
                    )


@contextmanager
def _widened(layer: nn.Module) -> Iterator[None]:
    """Let the layer's own parameters be in fp32 inside the block; afterwards they are rounded, where they were."""
    narrow = {
        parameter: parameter.data
        for parameter in layer.parameters(recurse=False)
        if parameter.is_floating_point() and parameter.dtype.itemsize < torch.float32.itemsize
    }
    for parameter, data in narrow.items():
        parameter.data = data.float()
    try:
        yield
    finally:
        for parameter, data in narrow.items():
            wide, parameter.data = parameter.data, data
            parameter.copy_(wide)


class _Place(NamedTuple):
    """Where a model has a parameter: the path of the module that owns it, the module, and the attribute's name."""

    path: str
    module: nn.Module
    attribute: str

    def __str__(self) -> str:
        return f"{self.path}.{self.attribute}"


def _untie(model: Any, names: Sequence[str]) -> list[str]:
    """Give places that share a parameter one each, if merging makes their values different.

    Returns:
        A line about it, or nothing.
    """
    groups = _tied(model)
    torn = [group for group in groups if len({_fate(model, place, names) for place in group}) > 1]
    if not torn:
        return []
    is_said = _say_untied(getattr(model, "config", None))
    for group in groups if is_said else torn:
        for _, module, attribute in group[1:]:
            parameter = getattr(module, attribute)
            own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(module, attribute, own)
    what = "; ".join(" and ".join(map(str, group)) for group in torn)
    return [f"untied, as merging makes them different: {what}{' (tie_word_embeddings: false)' if is_said else ''}"]


def _tied(model: nn.Module) -> list[list[_Place]]:
    """Return the places of every parameter that more than one module owns."""
    places: defaultdict[nn.Parameter, list[_Place]] = defaultdict(list)
    for path, module in base_modules(model):
        for attribute, parameter in module.named_parameters(recurse=False):
            places[parameter].append(_Place(path, module, attribute))
    return [found for found in places.values() if len(found) > 1]


def _fate(model: nn.Module, place: _Place, names: Sequence[str]) -> object:
    """Return something that is equal for places of one parameter which hold the same after merging."""
    for name in names:
        for path in copied_modules(model, name):
            if place.path == path or place.path.startswith(f"{path}."):
                layer: Any = model.get_submodule(path)
                return layer.peftly[name].copy.get_parameter(str(place).removeprefix(f"{path}."))
    changes = [change for name, change in getattr(place.module, LAYER_ADAPTERS, {}).items() if name in names]
    changed = any(place.attribute == "bias" or not isinstance(change, BiasCopy) for change in changes)
    return place.module if changed else None


def _say_untied(config: Any) -> bool:
    """Write into a model's config, which says it of all ties at once, that there are none; return whether it can."""
    if config is None or not hasattr(config, "tie_word_embeddings"):
        return False
    # T5's cannot: its loader ties what its file has twice with the same values, and nothing else.
    if type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False}).tie_word_embeddings:
        return False
    for one in (config, config.get_text_config()):
        one.tie_word_embeddings = False
    return True
