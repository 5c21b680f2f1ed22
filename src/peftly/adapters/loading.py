"""Open adapters, in the format of Hugging Face PEFT, on a model or together with their base."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from peftly.adapters.attachment import detach, install
from peftly.adapters.files import (
    TRAINING,
    adapters_in,
    check_tensors,
    method_config,
    no_adapter,
    read_peft_config,
    read_tensors,
    without_extras,
)
from peftly.adapters.location import base_requirements, corrects_quantization, find_adapter, training_quantization
from peftly.adapters.saving import adapter_tensors
from peftly.adapters.state import parts_without_copy
from peftly.errors import AdapterError, MethodError
from peftly.injection import copied_parameters
from peftly.methods import METHODS, Adapter
from peftly.models import Quantization, load_base

if TYPE_CHECKING:
    from peftly.models import Base

__all__ = ["load", "load_adapter", "load_together"]


def load_adapter(model: PreTrainedModel, folder: str | Path, *, name: str = "default") -> PreTrainedModel:
    """Put the adapter in `folder`, written by peftly or by PEFT, on `model`, in place; it is on afterwards.

    A folder in which several adapters were saved together, each in a folder of its own, gives them all, under those
    names.

    Returns:
        The same model.

    Raises:
        AdapterError: the folder holds no adapter, or one that is damaged, of an unknown kind, or for another base.
        MethodError: the model has an adapter of this name already, or cannot carry this one.
    """
    folder = Path(folder)
    places = adapters_in(folder, name)
    if not places:
        raise no_adapter(folder)
    loaded: list[str] = []
    try:
        for one, place in places.items():
            _load(model, place, one)
            loaded.append(one)
    except (AdapterError, MethodError):
        for one in loaded:
            detach(model, one)
        raise
    return model


def _load(model: PreTrainedModel, folder: Path, name: str) -> None:
    peft = read_peft_config(folder)
    config = method_config(folder, peft)
    tensors = without_extras(folder, model, read_tensors(folder))
    kind = METHODS[config.name].adapter
    adapter = install(model, config, name, lambda: kind.blank(model, config, name))
    try:
        check_tensors(folder, adapter_tensors(adapter), tensors)
    except AdapterError:
        detach(model, name)
        raise
    with torch.no_grad():
        adapter.load_own_tensors(tensors, peft)
        for place, parameter in copied_parameters(model, name, adapter.copies_prefix).items():
            parameter.copy_(tensors[place])
        if (folder / TRAINING).is_file():
            _resume(folder, adapter)


def _resume(folder: Path, adapter: Adapter) -> None:
    try:
        adapter.resume(read_tensors(folder, TRAINING))
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        detach(adapter.model, adapter.name)
        raise AdapterError(f"{folder / TRAINING} does not fit this {adapter.config.name} adapter: {reason}") from None


def load(
    path_or_hub_id: str | Path,
    *,
    name: str = "default",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Quantization | str | None = None,
) -> Base:
    """Open an adapter, or all that were saved together, with the base that they name and the head of their task.

    Args:
        path_or_hub_id: an adapter folder, a folder in which several were saved together (all are attached, and on), a
            run folder (its `adapter` is opened), or the Hub id of an adapter.
        name: what to call the adapter in the model; those that were saved together keep their names.
        dtype, device, device_map: as for `load_base`.
        quantization: as for `load_base`; None: as the adapter was trained, `none`: the base as its files have it.

    Returns:
        The adapted model and its tokenizer.

    Raises:
        AdapterError: no adapter there, it names no base, several are for different bases, or a part of the head is in
            neither.
        BaseModelError: its base cannot be opened.
    """
    folder = find_adapter(path_or_hub_id)
    if quantization is None:
        quantization = training_quantization(folder)
    elif quantization == "none" and corrects_quantization([folder]):
        warnings.warn(
            f"{folder} makes up for what quantising its base has cost: over the plain base its answers are off",
            stacklevel=2,
        )
    spec, task, labels = base_requirements(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no weights for")  # the adapter is to have them
        base = load_base(
            spec,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            task=task,
            labels=labels,
        )
    load_adapter(base.model, folder, name=name)
    lost = parts_without_copy(base.model)
    if lost:
        raise AdapterError(
            f"neither {folder} nor its base {spec} has weights for {', '.join(lost)}, so its answers would be random; "
            "train it again with modules_to_save naming them"
        )
    return base


def load_together(
    folders: Iterable[Path], *, dtype: str | torch.dtype, device: str | None = None, quantization: str | None = None
) -> Base:
    """Open adapters on one base, as `load` opens one; several are called adapter_1, adapter_2 and so on."""
    first, *others = folders
    name = "adapter_1" if others else "default"
    base = load(first, name=name, dtype=dtype, device=device, quantization=quantization)
    for number, folder in enumerate(others, start=2):
        load_adapter(base.model, folder, name=f"adapter_{number}")
    return base
