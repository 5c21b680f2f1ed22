"""Adapters from disk, put on a model or opened together with their base."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from peftly.adapters.adapter_set import AdapterSet, AdapterSource, correcting_adapter, open_adapters
from peftly.adapters.allocation import AllocationLimit
from peftly.adapters.arguments import check_model
from peftly.adapters.attachment import install
from peftly.adapters.base_changes import base_for, finish_base, tokenizer_for
from peftly.adapters.embeddings import (
    check_vocabulary,
    embeddings_in,
    put_embeddings,
    rows_restored_on_failure,
)
from peftly.adapters.files import BASE, HEAD_SEED, METHOD, TENSORS, TRAINING, escaped
from peftly.adapters.fitting import check_labels, check_pooling, check_tensors, is_left_out, method_on, unfit
from peftly.adapters.folder import AdapterFolder
from peftly.adapters.own_tokenizer import tokenizer_size
from peftly.adapters.rollback import restored_on_failure
from peftly.adapters.saving import adapter_tensors
from peftly.adapters.state import attached, parts_without_copy, state_of
from peftly.adapters.tensor_names import with_known_names
from peftly.adapters.training_quantization import other_quantization, quantization_advice, remember_training
from peftly.adapters.vocabulary import vocabulary_size
from peftly.errors import AdapterError, MethodError
from peftly.injection import body_of, copied_buffers, copied_modules, copied_parameters, tied_copies, untie_copies
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import Base, Quantization, load_base, note_difference
from peftly.utils import warn

if TYPE_CHECKING:
    from pathlib import Path

    from peftly.models import BaseSpec

__all__ = ["load", "load_adapter", "load_together"]

ModelT = TypeVar("ModelT", bound="nn.Module | Base")

_ROUNDING = 0.02
"""Largest relative difference of a prompt and the one that its network computes, which may have been in bf16."""


def load_adapter(model: ModelT, source: AdapterSource, *, name: str = "default", on: bool = True) -> ModelT:
    """Put an adapter that peftly or PEFT wrote on `model`, in place; the adapter is active afterwards.

    Embeddings in the file of the adapter, of new tokens, are written into the base; `detach` restores its own.

    While the model answers in other threads, load with `on=False` and choose adapters with `use_adapters`.

    Args:
        model: base of the adapter, for example from `load_base`, or a `Base` of model and tokenizer: then the tokenizer
            in the folder of the adapter, if there is one, is returned instead of that of the base. Adapters with
            different tokenizers may be on one model; each is for texts of its own tokenizer.
        source: an adapter folder, a folder in which several adapters were saved together (all are attached), a run
            folder (its `adapter` is opened), or the Hub id of an adapter.
        name: name of the adapter in the model; adapters that were saved together have their own names.
        on: whether the adapter is active afterwards, in all threads; False: as soon as it is chosen.

    Returns:
        The same model; for a `Base` the model and the tokenizer of the adapter.

    Raises:
        AdapterError: the source holds no adapter, or one that is damaged, that was changed after it was saved, whose
            files disagree, of an unknown type, or for another base or vocabulary. After this and any other error,
            Ctrl-C included, the model is as it was before the call.
        MethodError: the model has an adapter of this name already, or cannot carry this one.
    """
    if isinstance(model, Base):
        return cast("ModelT", _load_on_base(model, open_adapters(source), name, on=on))
    adapters = open_adapters(source).named(name)
    check_model(model)
    with restored_on_failure(model), rows_restored_on_failure(model):
        for adapter_name, folder in adapters.items():
            _load(model, folder, adapter_name, on=on)
        _compare_base(model, adapters)
        for adapter_name, folder in adapters.items():
            if (quantization := other_quantization(model, folder)) is not None:
                warn(quantization_advice(str(folder.path), quantization.kind, model), stacklevel=2)
                remember_training(model, adapter_name, quantization)
    return model


def _load_on_base(base: Base, adapters: AdapterSet, name: str, *, on: bool) -> Base:
    """Put adapters on a model with their tokenizer; see `load_adapter`."""
    tokenizer, rows = tokenizer_for([adapters], base.tokenizer), vocabulary_size(base.model)
    if tokenizer is not None and rows is not None and tokenizer_size(tokenizer) > rows:
        raise AdapterError(
            f"{adapters.path} has a tokenizer of {tokenizer_size(tokenizer)} tokens, and this base has {rows} "
            f"embeddings; call base.model.resize_token_embeddings({tokenizer_size(tokenizer)}) first, or open both "
            "with peftly.load"
        )
    load_adapter(base.model, adapters, name=name, on=on)
    finish_base(base.model, adapters.named(name), [adapters], tokenizer)
    return Base(base.model, tokenizer or base.tokenizer)


def _load(model: nn.Module, folder: AdapterFolder, name: str, *, on: bool) -> None:
    check_labels(model, folder)
    check_pooling(model, folder)
    check_vocabulary(model, folder)
    tensors, is_alone = folder.tensors(), not attached(model)
    method = method_on(model, folder, tensors)
    adapter = install(model, method, name, lambda: _attach(model, folder, method, name))
    all_tensors, buffers = adapter_tensors(adapter), copied_buffers(model, name, adapter.copies_prefix)
    if not folder.is_own:
        tensors = with_known_names(tensors, all_tensors, folder.path / TENSORS)
    # Files of earlier versions have no buffers: those of the base stay.
    expected = {key: value for key, value in all_tensors.items() if key in tensors or key not in buffers}
    extras = {name: tensor for name, tensor in tensors.items() if name not in expected}
    embeddings = embeddings_in(model, adapter, extras)
    own = {name: tensor for name, tensor in tensors.items() if name in expected or not is_left_out(name, embeddings)}
    check_tensors(folder.path, expected, own)
    put_embeddings(model, folder.path, {path: extras[name] for name, path in embeddings.items()}, is_alone=is_alone)
    _untie_copies(model, folder, adapter, tensors)
    with torch.no_grad():
        adapter.load_file_tensors(tensors, folder.peft_config)
        for tensor_name, parameter in copied_parameters(model, name, adapter.copies_prefix).items():
            parameter.copy_(tensors[tensor_name])
        for tensor_name, buffer in buffers.items():
            buffer.copy_(tensors.get(tensor_name, buffer))
        if training_tensors := folder.training_tensors():
            _load_training_tensors(folder, adapter, training_tensors)
    if is_alone and folder.peft_config.get("base_model_name_or_path") == getattr(model, "name_or_path", None):
        state_of(model).revision = folder.peft_config.get("revision")
    if on:  # not before its tensors are loaded: other threads may call the model
        state_of(model).selection.activate(name)


def _untie_copies(model: nn.Module, folder: AdapterFolder, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Give copies of modules that are tied in the base parameters of their own, if they were trained untied.

    PEFT trains two copies, and one only with `ensure_weight_tying`; the file has a tensor for each in both cases.
    """
    were_tied = METHOD in folder.notes or folder.peft_config.get("ensure_weight_tying")
    for names in tied_copies(model, adapter.name):
        first, *others = (tensors[f"{adapter.copies_prefix}{name}"] for name in names)
        if not were_tied or not all(torch.equal(first, other) for other in others):
            untie_copies(model, adapter.name, names[1:])


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


def _attach(model: Any, folder: AdapterFolder, method: MethodConfig, name: str) -> Adapter:
    try:
        with AllocationLimit(folder):
            return METHODS[method.name].adapter.attach_for_loading(model, method, name)
    except MethodError as error:
        raise unfit(folder, error) from error


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
        The adapted model and its tokenizer: the one in the folder of the adapter, if there is one, else that of the
        base, with the chat template that the training set. The model has an embedding for each of its tokens, and
        generates with the settings in the folder of the adapter, if there are any.

    Raises:
        AdapterError: the source holds no adapter, neither it nor `base` names a base, several adapters have different
            bases or tokenizers, or neither the adapter nor its base has weights for a part of the head.
        BaseModelError: the base cannot be opened.
    """
    adapters = open_adapters(source, None if base is None else str(base))
    return _load_with_base({name: adapters}, adapters.base, quantization, dtype, device, device_map)


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
    named = {f"adapter_{number}": adapters for number, adapters in enumerate([first, *others], start=1)}
    return _load_with_base(named if others else {"default": first}, base, quantization, dtype, device)


def _load_with_base(
    opened: Mapping[str, AdapterSet],
    base: BaseSpec,
    quantization: Quantization | str | None,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Base:
    adapters = next(iter(opened.values()))
    if quantization is None:
        quantization = adapters.quantization
    elif quantization == "none" and correcting_adapter([adapters]):
        warn(
            f"{adapters.path} corrects the quantisation error of its base: over the plain base its answers are off",
            stacklevel=3,
        )
    base_name, task, labels, pooling, model_class, problem_type = adapters.requirements
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
    if problem_type is not None:
        loaded.model.config.problem_type = problem_type
    if adapters.chat_template is not None:
        loaded.tokenizer.chat_template = adapters.chat_template
    rows = vocabulary_size(loaded.model)
    loaded, own_tokenizer = base_for(loaded, opened.values())
    with warnings.catch_warnings():
        if quantization == "none":
            warnings.filterwarnings("ignore", ".* was trained over a base in")  # the caller has chosen the plain base
        for name, one in opened.items():
            load_adapter(loaded.model, one, name=name)
    finish_base(loaded.model, attached(loaded.model), opened.values(), own_tokenizer, rows)
    missing = parts_without_copy(loaded.model)
    if missing and body_of(loaded.model) is loaded.model:  # its states do not depend on a pooler
        warn(f"{base_name} has no weights for {', '.join(missing)}: they are random", stacklevel=3)
    elif missing:
        raise AdapterError(
            f"neither {adapters.path} nor its base {base_name} has weights for {', '.join(missing)}, so its answers "
            "would be random; train it again with modules_to_save naming them"
        )
    return loaded
