"""The files of an adapter, PEFT's and the notes beside them: read with care, and checked against a base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from peftly.adapters.version_0_1 import RENAMED_METHOD_SETTINGS, with_current_names, with_current_notes
from peftly.errors import AdapterError
from peftly.methods import METHODS, MethodConfig

__all__ = [
    "CARD",
    "CONFIG",
    "LABELS",
    "NOTES",
    "QUANTIZATION",
    "TENSORS",
    "TOGETHER",
    "TRAINING",
    "adapters_in",
    "check_tensors",
    "class_labels",
    "method_config",
    "no_adapter",
    "read_notes",
    "read_peft_config",
    "read_tensors",
    "saved_together",
    "without_extras",
]

CARD = "README.md"
CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
TRAINING = "training.safetensors"
"""What training goes on from, where the tensors are only what that has come to (a network that makes a prompt)."""

NOTES = "peftly.json"
"""What PEFT's files have no place for: the method's own settings, and how the run turned rows into text."""

QUANTIZATION = "quantization"
"""The note that says how the base was quantised."""

LABELS = "labels"
"""The note that names what a classifier tells apart, in order."""

TOGETHER = "together"
"""The note that names the adapters that were saved together, in the order in which they were attached: the order of
rows hangs on it."""


def adapters_in(folder: Path, name: str = "default") -> dict[str, Path]:
    """Return the folders of what is to be opened as one, by the adapters' names.

    Adapters in folders of their own that were not saved together, as the steps of a run are, are not meant to work
    together either, and are left out.

    Args:
        folder: of one adapter, or of several that were saved together, each in a folder of its name.
        name: what to call it if it is one.

    Returns:
        In the order in which they were attached; empty if there is none.

    Raises:
        AdapterError: some of those that were saved together are missing, or are of another time.
    """
    if (folder / CONFIG).is_file():
        return {name: folder}
    together = saved_together(folder)
    if not together:
        return {}
    first, names = next(iter(together.items()))
    odd = next((place for place in together if together[place] != names), None)
    if odd is not None:
        raise AdapterError(
            f"{folder} holds adapters that were not saved together: {first} was saved with {', '.join(names)}, "
            f"and {odd} with {', '.join(together[odd])}; save them again, or open one of these folders"
        )
    missing = [one for one in names if one not in _adapter_folders(folder)]
    if missing:
        raise AdapterError(
            f"{folder} lacks {', '.join(missing)}, saved together with {first}; save them again, or open one alone"
        )
    return {one: folder / one for one in names}


def saved_together(folder: Path) -> dict[str, list[str]]:
    """Return, for every adapter in `folder` that was not saved alone, the names of all that it was saved with."""
    noted = {place: _notes(folder / place).get(TOGETHER) for place in _adapter_folders(folder)}
    for place, names in noted.items():
        are_names = isinstance(names, list) and all(isinstance(one, str) for one in names)
        if names and not (are_names and place in names and len(set(names)) == len(names)):
            raise AdapterError(f"{folder / place / NOTES} is damaged: {TOGETHER} is {names!r}")
    return {place: names for place, names in noted.items() if names}


def no_adapter(folder: Path) -> AdapterError:
    """Return the error of a folder that is not the folder of an adapter."""
    alone = _adapter_folders(folder)
    alone = alone or sorted(str(path.parent.parent.name) for path in folder.glob(f"*/adapter/{CONFIG}"))
    hint = f"; open one of its folders: {', '.join(alone)}" if alone else ""
    return AdapterError(f"{folder} holds no adapter: it has no {CONFIG}, nor adapters that were saved together{hint}")


def _adapter_folders(folder: Path) -> list[str]:
    """Return the names of the folders that hold an adapter. No adapter has a dot in its name; half-written files do."""
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if "." not in path.parent.name)


def read_notes(folder: str | Path) -> dict[str, Any]:
    """Return what was noted beside an adapter, or beside all that were saved together; empty for one of PEFT's."""
    notes = [_notes(place) for place in adapters_in(Path(folder)).values()]
    return (
        {key: value for key, value in notes[0].items() if all(own.get(key) == value for own in notes)} if notes else {}
    )


def _notes(folder: Path) -> dict[str, Any]:
    path = folder / NOTES
    return with_current_notes(_read_json(path)) if path.is_file() else {}


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Return `adapter_config.json`.

    Raises:
        AdapterError: it is missing, is no JSON object, or names no `peft_type`.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise no_adapter(folder)
    config = _read_json(path)
    if "peft_type" not in config:
        raise AdapterError(f"{path} names no peft_type, so it is not the configuration of an adapter")
    if isinstance(config.get("settings"), Mapping):
        config["settings"] = with_current_names(config["settings"], RENAMED_METHOD_SETTINGS)
    return config


def method_config(folder: Path, peft: Mapping[str, Any]) -> MethodConfig:
    """Return the settings of the adapter in `folder`: as our own record has them, or as its configuration says.

    Raises:
        AdapterError: its type is none that peftly reads, or a setting is not sound or not supported.
    """
    kinds = {kind: None for method in METHODS.values() for kind in method.adapter.peft_types}
    if peft["peft_type"] not in kinds:
        raise AdapterError(f"{folder / CONFIG} is of peft_type {peft['peft_type']!r}; peftly reads {', '.join(kinds)}")
    kept = peft.get("modules_to_save")
    readings: dict[str, MethodConfig] = {}
    for method in METHODS.values():
        if peft["peft_type"] in method.adapter.peft_types:
            try:
                config = method.adapter.config_from_peft(peft)
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, AdapterError):
                    raise
                raise AdapterError(
                    f"{folder / CONFIG} is not a sound {peft['peft_type']} configuration: {_reason(error)}"
                ) from None
            if config is not None:
                saved = {"modules_to_save": None if kept is None else tuple(kept)}
                readings[config.name] = config.model_copy(update=saved)
    noted = _notes(folder).get("method", {})
    if noted.get("name") not in readings:
        return next(iter(readings.values()))
    try:
        return type(readings[noted["name"]]).model_validate(noted)
    except ValueError as error:
        raise AdapterError(f"{folder / NOTES} does not describe a {noted['name']} adapter: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return in one line what a settings class objected to."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def read_tensors(folder: Path, name: str = TENSORS) -> dict[str, Tensor]:
    """Return the tensors of a file of the adapter in `folder`, by the names that they have there.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = folder / name
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; its adapter_model.bin is a pickle, which is not opened: convert it to safetensors" if pickled else ""
        raise AdapterError(f"{folder} has no {TENSORS}{hint}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from None
    return tensors


def without_extras(folder: Path, model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what PEFT writes beside an adapter: the base's embeddings if it changes them, a head's bias thrice.

    Raises:
        AdapterError: the embeddings written are not those of `model`.
    """
    kept = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.base_layer\.weight", name)
        if match is None:
            if ".modules_to_save." not in name and ".original_module." not in name:
                kept[name] = tensor
            continue
        own = dict(model.named_parameters(remove_duplicate=False)).get(f"{match[1]}.weight")
        if own is None or own.shape != tensor.shape or not torch.allclose(own.float().cpu(), tensor.float(), atol=1e-3):
            raise AdapterError(
                f"{folder / TENSORS} has {match[1]} of another base: {tuple(tensor.shape)}, or with other values; "
                "give the base that it was trained on, its vocabulary resized likewise"
            )
    return kept


def check_tensors(folder: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of the tensors that an adapter has on its base.

    Args:
        folder: where the tensors are from, for messages.
        own: what the adapter on the model keeps in a file.
        found: what the file holds, without extras.

    Raises:
        AdapterError: they differ, so the adapter is of another base.
    """
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or extra:
        kind, name = ("lacks", missing[0]) if missing else ("also has", extra[0])
        more = f" and {len(missing or extra) - 1} more" if len(missing or extra) > 1 else ""
        raise AdapterError(f"{folder / TENSORS} does not fit this base: it {kind} {name}{more}")
    for name, parameter in own.items():
        if parameter.shape != found[name].shape:
            raise AdapterError(
                f"{folder / TENSORS} does not fit this base: {name} is {tuple(found[name].shape)}, "
                f"and the base needs {tuple(parameter.shape)}"
            )


def class_labels(folder: Path) -> list[str]:
    """Return what the classifier of an adapter tells apart; numbered, as transformers does it, where no note says."""
    noted = _notes(folder).get(LABELS)
    if noted:
        return [str(label) for label in noted]
    heads = [
        t for name, t in read_tensors(folder).items() if re.search(r"\.(classifier|score)(\.out_proj)?\.weight$", name)
    ]
    return [f"LABEL_{number}" for number in range(len(heads[-1]))] if heads else []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path} should hold a JSON object, and holds a {type(value).__name__}")
    return value
