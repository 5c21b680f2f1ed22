"""Adapters from disk, put on a model or opened together with their base."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from peftly.adapters.adapter_set import AdapterSet, AdapterSource, correcting_adapter, open_adapters
from peftly.adapters.allocation import AllocationLimit
from peftly.adapters.attachment import install
from peftly.adapters.files import BASE, CONFIG, HEAD_SEED, LABELS, TENSORS, TRAINING, escaped
from peftly.adapters.folder import AdapterFolder
from peftly.adapters.rollback import restored_on_failure
from peftly.adapters.saving import adapter_tensors
from peftly.adapters.state import parts_without_copy
from peftly.adapters.tensor_names import plain_name, with_known_names
from peftly.errors import AdapterError, MethodError
from peftly.injection import copied_modules, copied_parameters, task_modules
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import Quantization, labels_of, load_base, note_difference, pooling_of, task_of
from peftly.utils import warn

if TYPE_CHECKING:
    from pathlib import Path

    from peftly.models import Base, BaseSpec

__all__ = ["load", "load_adapter", "load_together"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_BASE_WEIGHT = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")
_UNUSED = re.compile(r"\.(modules_to_save|original_module)\.|\.lora_velora_embed(\.|$)")
_ROUNDING = 0.02
"""Largest relative difference of a prompt and the one that its network computes, which may have been in bf16."""


def load_adapter(model: ModelT, source: AdapterSource, *, name: str = "default") -> ModelT:
    """Put an adapter that peftly or PEFT wrote on `model`, in place; the adapter is active afterwards.

    Args:
        model: base of the adapter, for example from `load_base`.
        source: an adapter folder, a folder in which several adapters were saved together (all are attached), a run
            folder (its `adapter` is opened), or the Hub id of an adapter.
        name: name of the adapter in the model; adapters that were saved together have their own names.

    Returns:
        The same model.

    Raises:
        AdapterError: the source holds no adapter, or one that is damaged, that was changed after it was saved, whose
            files disagree, of an unknown type, or for another base. After this and any other error, Ctrl-C included,
            the model is as it was before the call.
        MethodError: the model has an adapter of this name already, or cannot carry this one.
    """
    adapters = open_adapters(source).named(name)
    with restored_on_failure(model):
        for adapter_name, folder in adapters.items():
            _load(model, folder, adapter_name)
        _compare_base(model, adapters)
    return model


def _load(model: nn.Module, folder: AdapterFolder, name: str) -> None:
    _check_labels(model, folder)
    _check_pooling(model, folder)
    tensors = folder.tensors()
    method = _method_on(model, folder, tensors)
    adapter = install(model, method, name, lambda: _attach(model, folder, method, name))
    expected = adapter_tensors(adapter)
    tensors = _without_extras(folder.path, model, with_known_names(tensors, expected, folder.path / TENSORS))
    _check_tensors(folder.path, expected, tensors)
    with torch.no_grad():
        adapter.load_file_tensors(tensors, folder.peft_config)
        for tensor_name, parameter in copied_parameters(model, name, adapter.copies_prefix).items():
            parameter.copy_(tensors[tensor_name])
        if training_tensors := folder.training_tensors():
            _load_training_tensors(folder, adapter, training_tensors)


def _check_labels(model: Any, folder: AdapterFolder) -> None:
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


def _check_pooling(model: Any, folder: AdapterFolder) -> None:
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


def _compare_base(model: nn.Module, adapters: Mapping[str, AdapterFolder]) -> None:
    """Warn if the base of a model is known to differ from the base of the training of some of its adapters."""
    compared: list[tuple[list[str], Any]] = []
    for name, folder in adapters.items():
        noted = copied_modules(model, name), folder.notes.get(BASE)
        if noted in compared:  # adapters that were trained together have one base
            continue
        compared.append(noted)
        difference = note_difference(model, *noted)
        if difference is not None:
            warn(
                f"{folder.path} was trained over another base than this one: {difference}; its answers are not those "
                "of its training",
                stacklevel=3,
            )


def _method_on(model: nn.Module, folder: AdapterFolder, tensors: Mapping[str, Tensor]) -> MethodConfig:
    """Return the settings with which an adapter is attached to a model; those of a file of PEFT may depend on it."""
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
        return adapter.config_on(model, method, folder.peft_config, shapes)
    except MethodError as error:
        raise _unfit(folder, error) from error
    except AdapterError as error:
        raise AdapterError(f"{folder.path / CONFIG}: {error}") from error


def _attach(model: Any, folder: AdapterFolder, method: MethodConfig, name: str) -> Adapter:
    try:
        with AllocationLimit(folder):
            return METHODS[method.name].adapter.attach_for_loading(model, method, name)
    except MethodError as error:
        raise _unfit(folder, error) from error


def _unfit(folder: AdapterFolder, error: MethodError) -> AdapterError:
    return AdapterError(f"the settings of {folder.path} do not fit this base: {escaped(error, 1000)}")


def _load_training_tensors(folder: AdapterFolder, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Set the trainable parameters of a reparameterised prompt, which has been loaded.

    Raises:
        AdapterError: the parameters do not fit the adapter, or produce another prompt.
    """
    path = folder.path
    loaded = {name: tensor.clone() for name, tensor in adapter.file_tensors().items()}
    try:
        with AllocationLimit(folder):
            adapter.load_training_tensors(tensors)
        produced = adapter.file_tensors()
    except (KeyError, RuntimeError) as error:
        reason = escaped(str(error).strip().splitlines()[0])
        raise AdapterError(f"{path / TRAINING} does not fit this {adapter.config.name} adapter: {reason}") from None
    for name, tensor in produced.items():
        is_another = tensor.shape != loaded[name].shape
        if is_another or (tensor - loaded[name]).norm() > _ROUNDING * loaded[name].norm():
            raise AdapterError(
                f"{path / TRAINING} and {path / TENSORS} disagree: the parameters in the first produce other "
                f"{name} than the second holds; copy the adapter again, or delete {TRAINING} to use the second alone"
            )


def load(
    source: AdapterSource,
    *,
    name: str = "default",
    base: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Quantization | str | None = None,
) -> Base:
    """Open an adapter, or several that were saved together, with the base that they name and the head of their task.

    Args:
        source: an adapter folder, a folder in which several adapters were saved together (all are attached, and
            active), a run folder (its `adapter` is opened), or the Hub id of an adapter.
        name: name of the adapter in the model; adapters that were saved together have their own names.
        base: the base, as `load_base` takes it, where it is not the one that the adapter names, or has moved.
        dtype, device, device_map: as for `load_base`.
        quantization: as for `load_base`. None: as in training; `none`: the base as its files have it.

    Returns:
        The adapted model and its tokenizer, which has the chat template that the training set.

    Raises:
        AdapterError: the source holds no adapter, neither it nor `base` names a base, several adapters have different
            bases, or neither the adapter nor its base has weights for a part of the head.
        BaseModelError: the base cannot be opened.
    """
    adapters = open_adapters(source, None if base is None else str(base))
    return _load_with_base(adapters, adapters.base, name, quantization, dtype, device, device_map)


def load_together(
    opened: Iterable[AdapterSet],
    base: BaseSpec,
    *,
    dtype: str | torch.dtype,
    device: str | None = None,
    quantization: str | None = None,
) -> Base:
    """Open adapters on one base, as `load` opens one; several are called adapter_1, adapter_2 and so on.

    Args:
        opened: adapters with the same requirements, see `open_compatible_adapters`.
        base: their base.
        dtype, device, quantization: as for `load`.
    """
    first, *others = opened
    name = "adapter_1" if others else "default"
    loaded = _load_with_base(first, base, name, quantization, dtype, device)
    for number, adapters in enumerate(others, start=2):
        load_adapter(loaded.model, adapters, name=f"adapter_{number}")
    return loaded


def _load_with_base(
    adapters: AdapterSet,
    base: BaseSpec,
    name: str,
    quantization: Quantization | str | None,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Base:
    if quantization is None:
        quantization = adapters.quantization
    elif quantization == "none" and correcting_adapter([adapters]):
        warn(
            f"{adapters.path} corrects the quantisation error of its base: over the plain base its answers are off",
            stacklevel=3,
        )
    base_name, task, labels, pooling, model_class = adapters.requirements
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no weights for")  # the adapter should have them, see below
        loaded = load_base(
            base,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            task=task,
            labels=labels,
            pooling=pooling,
            model_class=model_class,
            seed=adapters.notes.get(HEAD_SEED, 0),
        )
    if adapters.chat_template is not None:
        loaded.tokenizer.chat_template = adapters.chat_template
    load_adapter(loaded.model, adapters, name=name)
    missing = parts_without_copy(loaded.model)
    if missing and loaded.model.base_model is loaded.model:  # its states do not depend on a pooler
        warn(f"{base_name} has no weights for {', '.join(missing)}: they are random", stacklevel=3)
    elif missing:
        raise AdapterError(
            f"neither {adapters.path} nor its base {base_name} has weights for {', '.join(missing)}, so its answers "
            "would be random; train it again with modules_to_save naming them"
        )
    return loaded


def _without_extras(folder: Path, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out tensors that PEFT writes with an adapter and no output depends on.

    These are embeddings of the base, the bias of a head thrice, and what VeLoRA uses in its backward pass.

    Raises:
        AdapterError: the embeddings in the file are not those of `model`.
    """
    copies = {name: match[1] for name in tensors if (match := _BASE_WEIGHT.fullmatch(name))}
    parameters = dict(model.named_parameters(remove_duplicate=False)) if copies else {}
    for name, path in copies.items():
        weight = parameters.get(f"{path}.weight")
        if weight is None or not _are_close(weight, tensors[name]):
            raise AdapterError(
                f"{folder / TENSORS} has {path} of another base: {tuple(tensors[name].shape)}, or with other "
                "values; give the base that it was trained on, its vocabulary resized likewise"
            )
    left_out = {*copies, *(name for name in tensors if _UNUSED.search(name))}
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _are_close(weight: Tensor, tensor: Tensor) -> bool:
    return weight.shape == tensor.shape and torch.allclose(weight.float().cpu(), tensor.float(), atol=1e-3)


def _check_tensors(folder: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
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
        if not tensors[name].is_floating_point():
            raise AdapterError(f"{folder / TENSORS} is damaged: {name} has the dtype {tensors[name].dtype}")
