"""Names of the files of an adapter, and reading them with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from peftly.errors import AdapterError

__all__ = [
    "ADAPTER_FILES",
    "BASE",
    "CARD",
    "CONFIG",
    "LABELS",
    "METHOD",
    "NOTES",
    "QUANTIZATION",
    "ROW_FORMAT",
    "TENSORS",
    "TOGETHER",
    "TRAINING",
    "read_json",
    "read_shapes",
    "read_tensors",
]

CONFIG = "adapter_config.json"
"""Configuration of the adapter, in PEFT's format. A folder with this file is the folder of an adapter."""

TENSORS = "adapter_model.safetensors"
"""Weights of the adapter, in PEFT's format."""

TRAINING = "training.safetensors"
"""Trainable parameters of a reparameterised prompt. The file with the weights holds only the prompt they produce."""

NOTES = "peftly.json"
"""Facts that PEFT's files have no field for: settings of the method, row format of the run, labels, quantization."""

CARD = "README.md"
"""Model card."""

ADAPTER_FILES = (CONFIG, TENSORS, TRAINING, NOTES, CARD)
"""All files of an adapter, in the order in which they are deleted: without the first, a folder is no adapter."""

METHOD = "method"
"""Key of `NOTES`: settings of the method."""

ROW_FORMAT = "row_format"
"""Key of `NOTES`: how a row of the training data became text."""

QUANTIZATION = "quantization"
"""Key of `NOTES`: quantization of the base in training."""

BASE = "base"
"""Key of `NOTES`: identity of the base in training; see `peftly.models.identity`."""

LABELS = "labels"
"""Key of `NOTES`: labels of a classifier, in the order of its outputs."""

TOGETHER = "together"
"""Key of `NOTES`: names of all adapters that were saved by the same call, in the order in which they were attached.
The order matters: it is the order of their virtual tokens."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        AdapterError: the file cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path} should hold a JSON object, and holds a {type(value).__name__}")
    return value


def read_tensors(folder: Path, file_name: str = TENSORS) -> dict[str, Tensor]:
    """Return the tensors in a file of an adapter, by their names in the file.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = _tensor_file(folder, file_name)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from None
    return tensors


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of an adapter, by their names in the file; no weight is read.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = _tensor_file(folder, TENSORS)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from None


def _tensor_file(folder: Path, file_name: str) -> Path:
    path = folder / file_name
    if not path.is_file():
        is_pickled = (folder / "adapter_model.bin").is_file()
        hint = "; its adapter_model.bin is a pickle, which is not opened: convert it to safetensors"
        raise AdapterError(f"{folder} has no {file_name}{hint if is_pickled else ''}")
    return path
