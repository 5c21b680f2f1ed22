"""One adapter on disk: its JSON files, parsed once into an immutable object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from peftly.adapters.files import (
    ADAPTER_FILES,
    CONFIG,
    LABELS,
    METHOD,
    NOTES,
    QUANTIZATION,
    TENSORS,
    TRAINING,
    read_json,
    read_shapes,
    read_tensors,
)
from peftly.adapters.version_0_1 import RENAMED_METHOD_SETTINGS, with_current_names, with_current_notes
from peftly.errors import AdapterError
from peftly.methods import METHODS, MethodConfig
from peftly.models import TASKS, Quantization, task_of_peft

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
    """

    base: str
    task: TaskName | None
    labels: tuple[str, ...]

    def __str__(self) -> str:
        labels = f" of {', '.join(self.labels)}" if self.labels else ""
        return f"{self.base}{f' ({self.task}{labels})' if self.task else ''}"


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter on disk.

    Attributes:
        path: folder of the adapter.
        peft_config: content of `adapter_config.json`.
        notes: content of `peftly.json`; empty for an adapter that PEFT wrote.
        method: settings of the method.
        file_names: names of the files that exist, of those in `ADAPTER_FILES`.

    Settings that version 0.1.0 wrote under other names have their current names.
    """

    path: Path
    peft_config: Mapping[str, Any]
    notes: Mapping[str, Any]
    method: MethodConfig
    file_names: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, notes: Mapping[str, Any] | None = None) -> AdapterFolder:
        """Read the JSON files of an adapter.

        Args:
            path: folder of the adapter.
            notes: result of `read_notes` for the folder, where it has been called already.

        Raises:
            AdapterError: the folder holds no adapter, a file is damaged, the adapter is of an unknown type, or a
                setting has an impossible value or is not supported.
        """
        peft_config = _read_peft_config(path)
        notes = read_notes(path) if notes is None else notes
        file_names = tuple(name for name in ADAPTER_FILES if (path / name).is_file())
        method = _read_method(path, peft_config, notes)
        return cls(path, MappingProxyType(peft_config), MappingProxyType(dict(notes)), method, file_names)

    @property
    def base_name(self) -> str | None:
        """Name of the base; None where the file names none."""
        return self.peft_config.get("base_model_name_or_path") or None

    @property
    def task(self) -> TaskName | None:
        """Task of the adapter; None where the file names none, or one that is none of peftly's."""
        return task_of_peft(self.peft_config.get("task_type"))

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
        sizes = [shape[0] for name, shape in read_shapes(self.path).items() if head.fullmatch(name)]
        return tuple(f"LABEL_{number}" for number in range(sizes[-1])) if sizes else ()

    @cached_property
    def requirements(self) -> BaseRequirements:
        """Requirements on the base.

        Raises:
            AdapterError: the adapter names no base.
        """
        if self.base_name is None:
            raise AdapterError(f"{self.path / CONFIG} names no base; open one with load_base and use load_adapter")
        return BaseRequirements(self.base_name, self.task, self.labels)

    @cached_property
    def quantization(self) -> Quantization | None:
        """Quantization of the base in training; None: it was not quantized by peftly.

        Raises:
            AdapterError: the note has an unknown value.
        """
        return quantization_in(self.notes, self.path)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the adapter, by their names in the file.

        Raises:
            AdapterError: the file is missing or damaged.
        """
        return read_tensors(self.path, TENSORS)

    def training_tensors(self) -> dict[str, Tensor]:
        """Return the trainable parameters of a reparameterised prompt, by their names in the file; often empty.

        Raises:
            AdapterError: the file is damaged.
        """
        return read_tensors(self.path, TRAINING) if TRAINING in self.file_names else {}


def no_adapter(folder: Path) -> AdapterError:
    """Return the error about a folder that holds no adapter, with the names of folders in it that do."""
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if "." not in path.parent.name)
    inside = inside or sorted(path.parent.parent.name for path in folder.glob(f"*/adapter/{CONFIG}"))
    hint = f"; open one of its folders: {', '.join(inside)}" if inside else ""
    return AdapterError(f"{folder} holds no adapter: it has no {CONFIG}, nor adapters that were saved together{hint}")


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the content of `peftly.json`; empty where the file is missing, as in a folder that PEFT wrote.

    Raises:
        AdapterError: the file cannot be read, or holds no JSON object.
    """
    path = folder / NOTES
    return with_current_notes(read_json(path)) if path.is_file() else {}


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
        raise AdapterError(f"{folder / NOTES}: {noted!r} is no known quantisation") from error


def _read_peft_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise no_adapter(folder)
    config = read_json(path)
    if "peft_type" not in config:
        raise AdapterError(f"{path} names no peft_type, so it is not the configuration of an adapter")
    if isinstance(config.get("settings"), Mapping):
        config["settings"] = with_current_names(config["settings"], RENAMED_METHOD_SETTINGS)
    return config


def _read_method(folder: Path, peft_config: Mapping[str, Any], notes: Mapping[str, Any]) -> MethodConfig:
    """Return the settings of the method: those in the notes, or else those in PEFT's configuration."""
    candidates = _methods_of_peft(folder, peft_config)
    noted = notes.get(METHOD)
    if not isinstance(noted, Mapping) or noted.get("name") not in candidates:
        return next(iter(candidates.values()))
    try:
        return type(candidates[noted["name"]]).model_validate(noted)
    except ValueError as error:
        raise AdapterError(f"{folder / NOTES} does not describe a {noted['name']} adapter: {_reason(error)}") from None


def _methods_of_peft(folder: Path, peft_config: Mapping[str, Any]) -> dict[str, MethodConfig]:
    """Return the settings of each method that PEFT's configuration may describe, by the name of the method."""
    peft_type = peft_config["peft_type"]
    known_types = {name: None for method in METHODS.values() for name in method.adapter.peft_types}
    if peft_type not in known_types:
        raise AdapterError(f"{folder / CONFIG} is of peft_type {peft_type!r}; peftly reads {', '.join(known_types)}")
    saved = peft_config.get("modules_to_save")
    modules_to_save = None if saved is None else tuple(saved)
    candidates: dict[str, MethodConfig] = {}
    for method in METHODS.values():
        if peft_type not in method.adapter.peft_types:
            continue
        try:
            config = method.adapter.config_from_peft(peft_config)
        except AdapterError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(
                f"{folder / CONFIG} is not a sound {peft_type} configuration: {_reason(error)}"
            ) from None
        if config is not None:
            candidates[config.name] = config.model_copy(update={"modules_to_save": modules_to_save})
    return candidates


def _reason(error: Exception) -> str:
    """Return the objection of a settings class, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
