"""Adapters on disk, in the format of Hugging Face PEFT: write them whole or not at all, open them with their base."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peftly.adapters.card import adapter_card
from peftly.adapters.files import (
    CARD,
    CONFIG,
    LABELS,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TOGETHER,
    TRAINING,
    saved_together,
)
from peftly.adapters.state import attached
from peftly.errors import AdapterError, MethodError
from peftly.injection import copied_modules, copied_parameters, short_names
from peftly.methods import Adapter
from peftly.models import TASKS, labels_of, quantization_of, task_of

if TYPE_CHECKING:
    pass

__all__ = ["save_adapter"]

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
    tensors = {name: value.detach().float().cpu().clone() for name, value in adapter_tensors(adapter).items()}
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


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return all that a file keeps of an adapter, by name."""
    copies = copied_parameters(adapter.model, adapter.name, adapter.copies_prefix)
    return {**adapter.own_tensors(), **copies}


def _saved_modules(adapter: Adapter) -> list[str] | None:
    """Return the shortest names of the modules that the adapter trains copies of."""
    paths = copied_modules(adapter.model, adapter.name)
    return short_names(adapter.model, paths) if paths else None


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
