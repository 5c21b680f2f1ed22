"""Whether the files of an adapter fit a model, and the settings with which those of PEFT do."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from peftly.adapters.embeddings import with_tied_modules
from peftly.adapters.files import CONFIG, LABELS, TENSORS, escaped
from peftly.adapters.tensor_names import plain_name
from peftly.errors import AdapterError, MethodError
from peftly.injection import task_modules
from peftly.methods import METHODS, MethodConfig
from peftly.models import labels_of, pooling_of, task_of
from peftly.utils import warn

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from peftly.adapters.folder import AdapterFolder

__all__ = ["check_labels", "check_pooling", "check_tensors", "is_left_out", "method_on", "unfit"]

_UNUSED = re.compile(r"\.(modules_to_save|original_module)\.|\.lora_velora_embed(\.|$)")
"""Names of tensors on which no output depends: those that a file has twice, and what VeLoRA's backward pass uses."""


def method_on(model: nn.Module, folder: AdapterFolder, tensors: Mapping[str, Tensor]) -> MethodConfig:
    """Return the settings with which an adapter is attached to a model; those of a file of PEFT may depend on it.

    Args:
        model: model that the adapter is about to be attached to.
        folder: files of the adapter.
        tensors: its tensors, by their names in the file.

    Raises:
        AdapterError: the settings do not fit the model.
    """
    method = folder.method
    if folder.is_own:
        return method
    adapter = METHODS[method.name].adapter
    shapes = {plain_name(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    if method.modules_to_save is None:
        # PEFT adds the head of some tasks when it opens a file that names no modules.
        heads = [
            path
            for path in task_modules(model)
            for name, _ in model.get_submodule(path).named_parameters()
            if f"{adapter.copies_prefix}{path}.{name}" in shapes
        ]
        method = method.model_copy(update={"modules_to_save": tuple(dict.fromkeys(heads))})
    try:
        method = adapter.config_on(model, method, folder.peft_config, shapes)
    except MethodError as error:
        raise unfit(folder, error) from error
    except AdapterError as error:
        raise AdapterError(f"{folder.path / CONFIG}: {error}") from error
    return with_tied_modules(model, folder, method, shapes)


def unfit(folder: AdapterFolder, error: MethodError) -> AdapterError:
    """Return the error about an adapter whose settings a model cannot carry."""
    return AdapterError(f"the settings of {folder.path} do not fit this base: {escaped(error, 1000)}")


def check_labels(model: Any, folder: AdapterFolder) -> None:
    """Refuse a classifier whose labels are those of the adapter in another order, and warn about other names.

    Raises:
        AdapterError: the order differs, so that answers would have the wrong names.
    """
    noted = [str(label) for label in folder.notes.get(LABELS) or ()]
    labels = labels_of(model) if noted and getattr(model, "config", None) is not None else noted
    if labels != noted and sorted(labels) == sorted(noted):
        raise AdapterError(
            f"{folder.path} has the labels {', '.join(noted)}, and this base has them as {', '.join(labels)}; open the "
            "base with the labels in the order of the adapter"
        )
    if labels != noted and len(labels) == len(noted) and noted != [f"LABEL_{number}" for number in range(len(noted))]:
        warn(
            f"{folder.path} has the labels {escaped(', '.join(noted))}, and this base calls them "
            f"{escaped(', '.join(labels))}: answers have the names of the base; open the adapter with peftly.load, or "
            "the base with the labels of the adapter",
            stacklevel=4,
        )


def check_pooling(model: Any, folder: AdapterFolder) -> None:
    """Refuse a classifier whose head reads other states than the head of the adapter.

    Raises:
        AdapterError: the poolings differ.
    """
    if task_of(model) == folder.task == "sequence_classification" and pooling_of(model) != folder.pooling:
        raise AdapterError(
            f"{folder.path} has a head for pooling={folder.pooling!r}, and this base has one for pooling="
            f"{pooling_of(model)!r}; open the adapter with peftly.load, or the base with load_base(..., pooling="
            f"{folder.pooling!r})"
        )


def is_left_out(name: str, embeddings: Container[str]) -> bool:
    """Return whether a tensor is no weight of an adapter: an embedding of the base, or one that no output needs."""
    return name in embeddings or _UNUSED.search(name) is not None


def check_tensors(folder: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Do nothing if a file holds the tensors that an adapter has on its base, by names and shapes.

    Args:
        folder: folder of the file, for messages.
        expected: tensors of the adapter on the model.
        tensors: tensors of the file, without extras.

    Raises:
        AdapterError: names or shapes differ, so the adapter is for another base.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        verb, name = ("lacks", missing[0]) if missing else ("also has", extra[0])
        more = f" and {len(missing or extra) - 1} more" if len(missing or extra) > 1 else ""
        raise AdapterError(f"{folder / TENSORS} does not fit this base: it {verb} {name}{more}")
    for name, parameter in expected.items():
        if parameter.shape != tensors[name].shape:
            raise AdapterError(
                f"{folder / TENSORS} does not fit this base: {name} is {tuple(tensors[name].shape)}, "
                f"and the base needs {tuple(parameter.shape)}"
            )
        if tensors[name].is_floating_point() != parameter.is_floating_point():
            raise AdapterError(f"{folder / TENSORS} is damaged: {name} has the dtype {tensors[name].dtype}")
