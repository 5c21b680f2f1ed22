"""Whether adapters can be merged into the weights of their base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from peftly.adapters.state import attached, check_names
from peftly.errors import MethodError
from peftly.injection import (
    LAYER_ADAPTERS,
    BiasCopy,
    ModuleCopy,
    adapted_layers,
    base_modules,
    copied_modules,
    is_foreign,
)
from peftly.kernels import is_quantized
from peftly.methods import METHODS

__all__ = ["check_mergeable"]


def check_mergeable(model: nn.Module, names: Iterable[str], *, without: Sequence[str] = ()) -> None:
    """Do nothing if these adapters can be merged into the weights of the base.

    Args:
        model: a model with adapters.
        names: names of the adapters.
        without: names of adapters that are detached together with the merge.

    Raises:
        MethodError: a method does not change weights, a weight is quantized or on disk, the merge would change the
            effect of an adapter that stays, or the model has no such adapter.
    """
    names = check_names(model, list(names))
    others = [other for other in attached(model) if other not in (*names, *without)]
    for name in names:
        method = attached(model)[name].config.name
        if not METHODS[method].mergeable:
            raise MethodError(
                f"{method} cannot be merged: it does not change weights of the base; keep the adapter and load it with "
                "its base instead (peftly.load opens both; peftly export writes it for other tools)"
            )
        _refuse_quantized_layers(model, name)
        _refuse_computed_weights(model, name)
        _refuse_shared_layers(model, name, [*names, *others])
        _refuse_hidden_changes(model, name, others)


def _refuse_quantized_layers(model: nn.Module, name: str) -> None:
    for path, layer, change in adapted_layers(model, name):
        for inner, part in base_modules(layer):
            full_path = f"{path}.{inner}" if inner else path
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                raise MethodError(f"{full_path} is on disk: open the base without a device_map to merge into it")
            foreign = [value for value in part.parameters(recurse=False) if is_foreign(value)]
            if foreign and not is_quantized(part):
                raise MethodError(
                    f"{full_path} has a weight of class {type(foreign[0]).__name__}, which no other values can be "
                    "written into: open the base without quantisation"
                )
            if is_quantized(part) and not isinstance(change, BiasCopy):
                raise MethodError(
                    f"{full_path} is quantised: call peftly.dequantize first, or open the base without quantisation"
                )


def _refuse_computed_weights(model: nn.Module, name: str) -> None:
    """Refuse layers whose weight is computed from other tensors (weight_norm, spectral_norm, prune, parametrizations).

    A value that is written into such a weight is lost.
    """
    for path, layer, change in adapted_layers(model, name):
        if isinstance(change, ModuleCopy):
            continue  # the merge replaces the tensors from which weights are computed
        for attribute in ("bias",) if isinstance(change, BiasCopy) else ("weight", "bias"):
            if isinstance(getattr(layer, attribute, None), torch.Tensor) and attribute not in layer._parameters:
                raise MethodError(
                    f"{path}.{attribute} is computed from other tensors ({_computation(layer, attribute)}), so a "
                    "merge into it would be lost: remove that first, as "
                    f"{_removal(layer, attribute)} does, or keep the adapter"
                )


def _computation(layer: nn.Module, attribute: str) -> str:
    """Return the names of the tensors from which a weight is computed."""
    names = [name for name, _ in [*layer.named_parameters(), *layer.named_buffers()] if LAYER_ADAPTERS not in name]
    return ", ".join(name for name in names if attribute in name)


def _removal(layer: Any, attribute: str) -> str:
    """Return the call that makes a computed weight a parameter again."""
    if is_parametrized(layer, attribute):
        return f'torch.nn.utils.parametrize.remove_parametrizations(layer, "{attribute}")'
    if hasattr(layer, f"{attribute}_mask"):
        return f'torch.nn.utils.prune.remove(layer, "{attribute}")'
    kind = "weight_norm" if hasattr(layer, f"{attribute}_g") else "spectral_norm"
    return f'torch.nn.utils.remove_{kind}(layer, "{attribute}")'


def _refuse_shared_layers(model: nn.Module, name: str, names: Sequence[str]) -> None:
    for path, layer, _ in adapted_layers(model, name):
        changes = {other: change for other, change in layer.peftly.items() if other in names}
        if len(changes) > 1 and not all(change.only_adds for change in changes.values()):
            raise MethodError(
                f"{path} is changed by {' and '.join(changes)} together, and no weight can replace their "
                "joint effect; detach one of them first"
            )


def _refuse_hidden_changes(model: nn.Module, name: str, others: Sequence[str]) -> None:
    """Refuse if a module copy of `name` replaces a module in which `others` change layers.

    These changes have no effect while the copy is attached, and would have one after the copy is merged.
    """
    for path in copied_modules(model, name):
        for other in others:
            for inner, _, _ in adapted_layers(model, other):
                if inner.startswith(f"{path}."):
                    raise MethodError(
                        f"{name} trains a copy of {path}, so the change of {other} in {inner} has no effect, and would "
                        f"have one once {name} is merged; merge them together, or detach {other} first"
                    )
