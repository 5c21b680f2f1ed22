"""Names of the files of an adapter, and reading them with errors that name the file."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from peftly.errors import AdapterError
from peftly.utils import program

__all__ = [
    "ADAPTER_FILES",
    "BASE",
    "CARD",
    "CHECKSUMS",
    "CONFIG",
    "HEAD_SEED",
    "LABELS",
    "METHOD",
    "NOTES",
    "PEFT_LIMIT",
    "PROBLEM_TYPE",
    "PROBLEM_TYPES",
    "QUANTIZATION",
    "ROW_FORMAT",
    "TASK",
    "TENSORS",
    "TOGETHER",
    "TOKENIZER",
    "TRAINING",
    "escaped",
    "is_name",
    "no_tensors",
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

TASK = "task"
"""Key of `NOTES`: task of the adapter, where PEFT would ask for the trained head of this task and there is none."""

LABELS = "labels"
"""Key of `NOTES`: labels of a classifier, in the order of its outputs."""

PROBLEM_TYPE = "problem_type"
"""Key of `NOTES`: meaning of the outputs of a classifier, where not exactly one of its labels is right."""

PROBLEM_TYPES = ("multi_label_classification", "regression")
"""Values of this note, as in the configs of transformers."""

HEAD_SEED = "head_seed"
"""Key of `NOTES`: seed of the weights of a new head in the base. Several adapters add up their changes of them."""

TOGETHER = "together"
"""Key of `NOTES`: names of all adapters that were saved by the same call, in the order in which they were attached.
The order matters: it is the order of their virtual tokens."""


CHECKSUMS = "checksums"
"""Key of `NOTES`: SHA-256 of the files of the adapter, by their names; see `adapters.checksums`."""

TOKENIZER = "tokenizer"
"""Key of `NOTES`: true where `save_adapter` has written the tokenizer in the folder."""

PEFT_LIMIT = "peft_limit"
"""Key of `NOTES`: why PEFT cannot load the adapter, or computes other outputs with it."""

_MAX_JSON_BYTES = 16 * 2**20
_MAX_JSON_DEPTH = 64
_MAX_DIGITS = 100
_MAX_NAME = 1000


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        AdapterError: the file cannot be read, holds no JSON object, or is too large: in bytes, in depth, or in the
            digits of a number.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, and {_MAX_JSON_BYTES:,} are the most")
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite_float,
            parse_constant=_finite_float,
        )
        if _depth(value) > _MAX_JSON_DEPTH:
            raise RecursionError
        json.dumps(value, ensure_ascii=False).encode()  # half of a character ("\\ud800") is no text
    except RecursionError:
        raise AdapterError(f"{path} is nested deeper than {_MAX_JSON_DEPTH} levels") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {escaped(error)}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path} should hold a JSON object, and holds a {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {max(names, key=names.count)} twice")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if len(text) > _MAX_DIGITS or not math.isfinite(value := float(text)):
        raise ValueError(f"it has the number {text[:_MAX_DIGITS]}")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
    return depth


def _children(value: Any) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def escaped(value: object, limit: int = 200) -> str:
    """Return a text from a file or from a library for a message: in one line, printable, and not too long."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(value)[:limit])
    return text if len(str(value)) <= limit else f"{text}..."


def read_tensors(folder: Path, file_name: str = TENSORS) -> dict[str, Tensor]:
    """Return the tensors in a file of an adapter, by their names in the file.

    Raises:
        AdapterError: the file is missing or damaged, or a value is not finite.
    """
    path = _tensor_file(folder, file_name)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {escaped(error)}") from None
    _check_names(path, tensors)
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # float8
        if not torch.isfinite(values).all():
            raise AdapterError(f"{path} has NaN or infinite values in {name}, so every output would be NaN")
    return tensors


def read_shapes(folder: Path, file_name: str = TENSORS) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file of an adapter, by their names in the file; no tensor is read.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = _tensor_file(folder, file_name)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {escaped(error)}") from None
    _check_names(path, shapes)
    return shapes


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a module or a tensor: printable, and not absurdly long."""
    return text.isprintable() and len(text) <= _MAX_NAME


def _check_names(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if not is_name(name):
            raise AdapterError(f"{path} is damaged: a tensor is called {escaped(name)}")


def _tensor_file(folder: Path, file_name: str) -> Path:
    path = folder / file_name
    if not path.is_file():
        raise no_tensors(folder, str(folder)) if file_name == TENSORS else AdapterError(f"{folder} has no {file_name}")
    return path


def no_tensors(folder: Path, source: str) -> AdapterError:
    """Return the error about an adapter without weights in safetensors.

    Args:
        folder: folder of the adapter.
        source: its path or Hub id, as `peftly convert` takes it.
    """
    is_pickled = (folder / "adapter_model.bin").is_file()
    reason = "its adapter_model.bin is a pickle, which is not opened:" if is_pickled else "if another tool wrote it,"
    command = f"{program()} convert {shlex.quote(source)} {shlex.quote(f'{Path(source).name}-converted')}"
    return AdapterError(f"{source} has no {TENSORS}; {reason} convert it by {command}")
