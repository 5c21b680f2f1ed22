"""Adapters on disk, in the format of Hugging Face PEFT: write them whole or not at all, open them with their base."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peftly.adapt import attached, detach, install
from peftly.adapter_card import adapter_card
from peftly.adapter_files import (
    CARD,
    CONFIG,
    LABELS,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TOGETHER,
    TRAINING,
    adapters_in,
    check_tensors,
    method_config,
    no_adapter,
    read_peft_config,
    read_tensors,
    saved_together,
    without_extras,
)
from peftly.adapter_home import find_adapter, home_of, makes_up_for_quantization, trained_over
from peftly.classification import labels_of
from peftly.errors import AdapterError, MethodError
from peftly.head import parts_without_copy
from peftly.methods import METHODS, Adapter
from peftly.methods._copies import copied_modules, copied_parameters
from peftly.methods._quantized import quantization_of
from peftly.methods._targets import short_names
from peftly.quantization import Quantization
from peftly.tasks import TASKS, task_of

if TYPE_CHECKING:
    from peftly.base import Base

__all__ = ["load", "load_adapter", "load_together", "save_adapter"]

PEFT_VERSION = "0.21.2"
"""The version of PEFT whose format is written."""


def save_adapter(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write an adapter of `model` to `folder`, so that PEFT and `load_adapter` can read it.

    The files of an adapter are complete before the first of them appears under its name.

    Args:
        model: a model with an adapter on it.
        folder: made if it is missing; the adapter in it, or those that were saved together, are replaced.
        name: which adapter. None: the only one there is, or of several each, in a folder of its name in `folder`.
        notes: JSON values to keep beside it under the key they have here (see `read_notes`).
        card: the text of the model card; None writes a short one.

    Returns:
        `folder`.

    Raises:
        AdapterError: the folder cannot be written.
        MethodError: the model carries no adapter, or none of this name.
    """
    adapters = attached(model)
    if not adapters:
        raise MethodError("this model carries no adapter to save; attach one first")
    if name is not None and name not in adapters:
        raise MethodError(f"this model has no adapter {name!r}; it has {', '.join(map(repr, adapters))}")
    folder = Path(folder)
    chosen = [name] if name is not None else list(adapters)
    try:
        if len(chosen) == 1:
            _write(adapters[chosen[0]], folder, notes or {}, card)
        else:
            for one in chosen:
                _write(adapters[one], folder / one, {**(notes or {}), TOGETHER: chosen}, card)
            _drop_replaced(folder, chosen)
    except OSError as error:
        raise AdapterError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error
    return folder


def _drop_replaced(folder: Path, chosen: Sequence[str]) -> None:
    """Leave no adapter of before in a folder that several have just been saved to: it would be opened as well."""
    for place in [folder, *(folder / name for name in saved_together(folder) if name not in chosen)]:
        if (place / CONFIG).is_file():
            for file in (CONFIG, TENSORS, TRAINING, NOTES, CARD):
                (place / file).unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()


def _write(adapter: Adapter, folder: Path, notes: Mapping[str, Any], card: str | None) -> None:
    model = adapter.model
    base = getattr(getattr(model, "config", None), "name_or_path", None) or None
    task = task_of(model)
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "peft_type": adapter.peft_type,
        "peft_version": PEFT_VERSION,
        "revision": None,
        "task_type": TASKS[task].peft_type if task else None,
        "modules_to_save": _saved_modules(adapter),
        **adapter.peft_config(),
    }
    tensors = {name: value.detach().float().cpu().clone() for name, value in _tensors(adapter).items()}
    training = {name: value.detach().float().cpu().clone() for name, value in adapter.training_tensors().items()}
    labels = {LABELS: labels_of(model)} if task and TASKS[task].is_classification else {}
    kept = quantization_of(model)
    quantization = {} if kept is None else {QUANTIZATION: kept.model_dump(mode="json")}
    notes = {"method": adapter.config.model_dump(mode="json"), **labels, **quantization, **notes}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
        if training:
            save_file(training, scratch / TRAINING, metadata={"format": "pt"})
        _write_json(scratch / CONFIG, config)
        _write_json(scratch / NOTES, notes)
        (scratch / CARD).write_text(card or adapter_card(base, adapter.config), encoding="utf-8")
        _move_into(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
        check_tensors(folder, _tensors(adapter), tensors)
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


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return all that a file keeps of an adapter, by name."""
    copies = copied_parameters(adapter.model, adapter.name, adapter.copies_prefix)
    return {**adapter.own_tensors(), **copies}


def _saved_modules(adapter: Adapter) -> list[str] | None:
    """Return the shortest names of the modules that the adapter trains copies of."""
    paths = copied_modules(adapter.model, adapter.name)
    return short_names(adapter.model, paths) if paths else None


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
    from peftly.base import load_base

    folder = find_adapter(path_or_hub_id)
    if quantization is None:
        quantization = trained_over(folder)
    elif quantization == "none" and makes_up_for_quantization([folder]):
        warnings.warn(
            f"{folder} makes up for what quantising its base has cost: over the plain base its answers are off",
            stacklevel=2,
        )
    spec, task, labels = home_of(folder)
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


def _move_into(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.chmod(0o755)  # mkdtemp makes folders for the owner only
        scratch.rename(folder)
        return
    if not (scratch / TRAINING).exists():
        (folder / TRAINING).unlink(missing_ok=True)
    # The configuration goes last: a folder that has one is an adapter.
    for file in sorted(scratch.iterdir(), key=lambda path: path.name == CONFIG):
        file.replace(folder / file.name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
