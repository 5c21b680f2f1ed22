"""One adapter on disk: its JSON files, parsed once into an immutable object."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from peftly.adapters.checksums import check_file, check_json
from peftly.adapters.files import (
    ADAPTER_FILES,
    CHECKSUMS,
    CONFIG,
    HEAD_SEED,
    LABELS,
    METHOD,
    NOTES,
    PEFT_LIMIT,
    PROBLEM_TYPE,
    PROBLEM_TYPES,
    QUANTIZATION,
    ROW_FORMAT,
    TASK,
    TENSORS,
    TRAINING,
    escaped,
    is_name,
    no_tensors,
    read_json,
    read_shapes,
    read_tensors,
)
from peftly.adapters.method_settings import has_own_format, read_method
from peftly.adapters.parameter_targets import without_parameter_targets
from peftly.adapters.version_0_1 import RENAMED_METHOD_SETTINGS, with_current_names, with_current_notes
from peftly.errors import AdapterError, MethodError
from peftly.methods import METHODS, MethodConfig
from peftly.models import TASKS, Pooling, Quantization, class_of_peft, pooling_of_peft, task_of_peft

if TYPE_CHECKING:
    from torch import Tensor

    from peftly.data import TaskName

__all__ = ["AdapterFolder", "BaseRequirements", "no_adapter", "quantization_in", "read_notes"]


class BaseRequirements(NamedTuple):
    """Requirements of an adapter on its base.

    Attributes:
        base: name of the base.
        task: task of the adapter; None where the file names none.
        labels: labels of a classifier, in the order of its outputs; empty for other tasks.
        pooling: pooling in front of the head, as `load_base` takes it.
        model_class: class of transformers for a base without one of these tasks, as `load_base` takes it.
        problem_type: meaning of the outputs of a classifier where it is not the usual one, as in transformers' configs.
    """

    base: str
    task: TaskName | None
    labels: tuple[str, ...]
    pooling: Pooling | None = None
    model_class: str | None = None
    problem_type: str | None = None

    def __str__(self) -> str:
        labels = f" of {', '.join(self.labels)}" if self.labels else ""
        head = f", pooling {self.pooling}" if self.pooling else ""
        return escaped(f"{self.base}{f' ({self.task}{labels}{head})' if self.task else ''}")


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter on disk.

    Attributes:
        path: folder of the adapter.
        peft_config: content of `adapter_config.json`, with all layers in `target_modules`.
        notes: content of `peftly.json` without checksums; empty for an adapter that PEFT wrote.
        checksums: checksum of each file, by its name; empty for an adapter that PEFT or version 0.1.0 wrote.
        method: settings of the method.
        file_names: names of the files that exist, of those in `ADAPTER_FILES`.
        moved_base: base that was given instead of the one that the files name; None: there is none.

    Settings that version 0.1.0 wrote under other names have their current names.
    """

    path: Path
    peft_config: Mapping[str, Any]
    notes: Mapping[str, Any]
    checksums: Mapping[str, str]
    method: MethodConfig
    file_names: tuple[str, ...]
    moved_base: str | None = None

    @classmethod
    def read(cls, path: Path, notes: Mapping[str, Any] | None = None) -> AdapterFolder:
        """Read the JSON files of an adapter.

        Args:
            path: folder of the adapter.
            notes: result of `read_notes` for the folder, where it has been called already.

        Raises:
            AdapterError: the folder holds no adapter, a file is damaged or was changed, the adapter is of an unknown
                type, a setting has an impossible value or is not supported, or the two files disagree on a setting.
        """
        if not (path / CONFIG).is_file():
            raise no_adapter(path)
        if not (path / TENSORS).is_file():
            raise no_tensors(path, str(path))
        peft_config = read_json(path / CONFIG)
        notes = read_notes(path) if notes is None else notes
        checksums = check_json(path, peft_config, notes)
        notes = with_current_notes({key: value for key, value in notes.items() if key != CHECKSUMS})
        peft_config = _checked_peft_config(path, peft_config)
        file_names = tuple(name for name in ADAPTER_FILES if (path / name).is_file())
        method = read_method(path, peft_config, notes)
        _check_notes(path, notes)
        return cls(
            path=path,
            peft_config=MappingProxyType(peft_config),
            notes=MappingProxyType(notes),
            checksums=MappingProxyType(checksums),
            method=method,
            file_names=file_names,
        )

    @property
    def is_own(self) -> bool:
        """Whether peftly wrote the adapter, so that its files hold all settings of the method."""
        return METHOD in self.notes or has_own_format(self.peft_config)

    @property
    def base_name(self) -> str | None:
        """Name of the base that was given, or else that of the file; None where there is none."""
        return self.moved_base or self.peft_config.get("base_model_name_or_path") or None

    @property
    def task(self) -> TaskName | None:
        """Task of the adapter; None where the file names none, or one that is none of peftly's."""
        noted: TaskName | None = self.notes.get(TASK)
        return noted or task_of_peft(self.peft_config.get("task_type"))

    @property
    def model_class(self) -> str | None:
        """Class of transformers that opens the base of an adapter without a task; None: the class that it names."""
        return None if self.task is not None else class_of_peft(self.peft_config)

    @property
    def pooling(self) -> Pooling | None:
        """Pooling in front of the head of a sequence classifier; None: the class of transformers has its own."""
        return pooling_of_peft(self.peft_config.get("task_type"))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of a classifier, in the order of its outputs; empty for other tasks.

        Labels that no note names are numbered, as transformers does.
        """
        if self.task is None or not TASKS[self.task].is_classification:
            return ()
        if noted := self.notes.get(LABELS):
            return tuple(map(str, noted))
        head = re.compile(r".*\.(classifier|score)(\.out_proj)?\.weight")
        sizes = [shape[0] for name, shape in self.shapes().items() if head.fullmatch(name) and math.prod(shape)]
        return tuple(f"LABEL_{number}" for number in range(sizes[-1])) if sizes else ()

    @cached_property
    def requirements(self) -> BaseRequirements:
        """Requirements on the base.

        Raises:
            AdapterError: the adapter names no base.
        """
        if self.base_name is None:
            raise AdapterError(
                f"{self.path / CONFIG} names no base: give it with --base, or base= in Python; or open one with "
                "load_base and use load_adapter"
            )
        problem_type = self.notes.get(PROBLEM_TYPE)
        return BaseRequirements(self.base_name, self.task, self.labels, self.pooling, self.model_class, problem_type)

    @cached_property
    def quantization(self) -> Quantization | None:
        """Quantization of the base in training; None: it was not quantized by peftly.

        Raises:
            AdapterError: the note has an unknown value.
        """
        return quantization_in(self.notes, self.path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights of the adapter, by their names in the file; no weight is read.

        Raises:
            AdapterError: the file is missing or damaged.
        """
        return read_shapes(self.path, TENSORS)

    def num_elements(self) -> int:
        """Return the number of elements of all tensors in the files of the adapter; no tensor is read.

        Raises:
            AdapterError: a file is missing or damaged.
        """
        shapes = [*self.shapes().values()]
        if TRAINING in self.file_names:
            shapes += read_shapes(self.path, TRAINING).values()
        return sum(map(math.prod, shapes))

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the adapter, by their names in the file.

        Raises:
            AdapterError: the file is missing, damaged or was changed, does not fit the settings, or a value is not
                finite.
        """
        check_file(self.path, TENSORS, self.checksums)
        shapes = self.shapes()
        if not shapes:
            raise AdapterError(f"{self.path / TENSORS} holds no tensor; copy the adapter again, or save it again")
        try:
            reason = METHODS[self.method.name].adapter.shape_error(self.method, shapes)
        except MethodError as error:
            reason = str(error)
        if reason is not None:
            raise AdapterError(f"{self.path / TENSORS} does not fit the settings of the adapter: {escaped(reason)}")
        return read_tensors(self.path, TENSORS)

    def training_tensors(self) -> dict[str, Tensor]:
        """Return the trainable parameters of a reparameterised prompt, by their names in the file; often empty.

        Raises:
            AdapterError: the file is damaged or was changed, or a value is not finite.
        """
        if TRAINING not in self.file_names:
            return {}
        check_file(self.path, TRAINING, self.checksums)
        return read_tensors(self.path, TRAINING)


def no_adapter(folder: Path) -> AdapterError:
    """Return the error about a folder that holds no adapter, with the names of folders in it that do."""
    if not folder.exists():
        return AdapterError(f"{folder} holds no adapter: there is no such folder (looked from {Path.cwd()})")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if "." not in path.parent.name)
    inside = inside or sorted(path.parent.parent.name for path in folder.glob(f"*/adapter/{CONFIG}"))
    hint = f"; open one of its folders: {', '.join(inside)}" if inside else ""
    if not inside and (folder / "config.json").is_file():
        hint = "; it is a base, which peftly.load_base opens"
    return AdapterError(f"{folder} holds no adapter: it has no {CONFIG}, nor adapters that were saved together{hint}")


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the content of `peftly.json`; empty where the file is missing, as in a folder that PEFT wrote.

    Raises:
        AdapterError: the file cannot be read, or holds no JSON object.
    """
    path = folder / NOTES
    return read_json(path) if path.is_file() else {}


def quantization_in(notes: Mapping[str, Any], folder: Path) -> Quantization | None:
    """Return the quantization of the base that notes name; None where they name none.

    Args:
        notes: content of `peftly.json`.
        folder: folder of the file, for messages.

    Raises:
        AdapterError: the note has an unknown value.
    """
    noted = notes.get(QUANTIZATION)
    try:
        return None if noted is None else Quantization.model_validate(noted)
    except ValidationError as error:
        raise AdapterError(f"{folder / NOTES}: {escaped(repr(noted))} is no known quantisation") from error


def _checked_peft_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `adapter_config.json` by current names, after a check of the entries of all methods."""
    path = folder / CONFIG
    if "peft_type" not in config:
        raise AdapterError(f"{path} names no peft_type, so it is not the configuration of an adapter")
    for key in ("peft_type", "base_model_name_or_path", "task_type"):
        if not isinstance(config.get(key), str | None):
            raise AdapterError(f"{path}: {key} should be a text, and is {escaped(repr(config[key]))}")
    mapping = config.get("auto_mapping")
    if mapping is not None and not (
        isinstance(mapping, Mapping) and isinstance(mapping.get("base_model_class"), str | None)
    ):
        raise AdapterError(f"{path}: auto_mapping should name a class, and is {escaped(repr(mapping))}")
    if config.get("modules_to_save") is not None and not _are_names(config["modules_to_save"]):
        raise AdapterError(
            f"{path}: modules_to_save should be a list of names, and is {escaped(repr(config['modules_to_save']))}"
        )
    if isinstance(config.get("settings"), Mapping):
        return {**config, "settings": with_current_names(config["settings"], RENAMED_METHOD_SETTINGS)}
    return without_parameter_targets(config)


def _check_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    checks: dict[str, Callable[[object], bool]] = {
        LABELS: _are_labels,
        ROW_FORMAT: lambda value: isinstance(value, Mapping),
        HEAD_SEED: _is_seed,
        TASK: lambda value: value in TASKS,
        PEFT_LIMIT: lambda value: isinstance(value, str),
        PROBLEM_TYPE: lambda value: value in PROBLEM_TYPES,
    }
    for key, is_sound in checks.items():
        if notes.get(key) is not None and not is_sound(notes[key]):
            raise AdapterError(f"{folder / NOTES} is damaged: {key} is {escaped(repr(notes[key]))}")


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and is_name(name) for name in value)


def _are_labels(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(label, str | int) for label in value)


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**32
