"""State of the adapters of a model, layer by layer and together, as PEFT reports it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftly.adapters import active_adapters, attached
from peftly.errors import MethodError
from peftly.injection import adapted_layers
from peftly.peft.trainable import number_of_parameters
from peftly.peft.wrapping import is_wrapped, wrapping_of

__all__ = ["ModelStatus", "TunerLayerStatus", "get_layer_status", "get_model_status"]


@dataclass
class TunerLayerStatus:
    """State of the adapters of one layer.

    Attributes:
        name: path of the layer in the model.
        module_type: class of the layer.
        enabled: whether adapters are active at all.
        active_adapters: names of the active adapters.
        merged_adapters: always empty.
        requires_grad: whether training changes each adapter; "irregular": some of its parameters.
        available_adapters: names of the adapters of the layer.
        devices: devices of each adapter.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | str]
    available_adapters: list[str]
    devices: dict[str, list[str]]


@dataclass
class ModelStatus:
    """State of the adapters of a model; see `TunerLayerStatus`.

    Attributes:
        base_model_type: class of the model.
        peft_types: method of each adapter, as PEFT names it.
        trainable_params, total_params: see `PeftModel.get_nb_trainable_parameters`.
        num_adapter_layers: number of layers with an adapter.
    """

    base_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | str]
    available_adapters: list[str]
    devices: dict[str, list[str]]


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """Return the state of each layer that an adapter changes.

    Raises:
        MethodError: the model has no adapter.
    """
    by_path: dict[str, dict[str, nn.Module]] = {}
    kinds: dict[str, str] = {}
    for name in attached(model):
        for path, layer, change in adapted_layers(model, name):
            by_path.setdefault(path, {})[name] = change
            kinds[path] = type(layer).__name__
    if not by_path:
        raise MethodError("no adapter layers found in the model; call peftly.peft.get_peft_model first")
    active, enabled = _active(model)
    return [
        TunerLayerStatus(
            path,
            kinds[path],
            enabled,
            active,
            [],
            {name: _joint(value.requires_grad for value in change.parameters()) for name, change in changes.items()},
            sorted(changes),
            {name: sorted({value.device.type for value in change.parameters()}) for name, change in changes.items()},
        )
        for path, changes in by_path.items()
    ]


def get_model_status(model: nn.Module) -> ModelStatus:
    """Return the state of the adapters of a model.

    Raises:
        MethodError: the model has no adapter.
    """
    layers, names = get_layer_status(model), sorted(attached(model))
    active, enabled = _active(model)
    of_adapter = {name: [layer for layer in layers if name in layer.available_adapters] for name in names}
    trainable, total = number_of_parameters(model)
    return ModelStatus(
        type(model).__name__,
        {name: adapter.peft_type for name, adapter in attached(model).items()},
        trainable,
        total,
        len(layers),
        enabled,
        active,
        [],
        {name: _joint(layer.requires_grad[name] for layer in of_adapter[name]) for name in names},
        names,
        {name: sorted({device for layer in of_adapter[name] for device in layer.devices[name]}) for name in names},
    )


def _active(model: Any) -> tuple[list[str], bool]:
    """Return the names of the active adapters, and whether adapters are enabled."""
    disabled = wrapping_of(model).disabled if is_wrapped(model) else None
    return (active_adapters(model), True) if disabled is None else (disabled, False)


def _joint(values: Iterable[bool | str]) -> bool | str:
    """Return the value that all share, or "irregular"."""
    different = set(values)
    return different.pop() if len(different) == 1 else "irregular"
