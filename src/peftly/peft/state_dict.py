"""Tensors of an adapter by the names of PEFT, in memory and from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from peftly.adapters import (
    ADAPTER_FILES,
    CONFIG,
    TENSORS,
    TOKENIZER_FILES,
    adapter_tensors,
    attached,
    embedding_tensors,
    not_fetched,
    open_adapters,
    peft_config_of,
    values_of,
    with_known_names,
)
from peftly.errors import AdapterError, MethodError
from peftly.injection import invalidate_cached_tensors
from peftly.peft.pickled import PICKLE, in_safetensors
from peftly.utils import warn

__all__ = [
    "IncompatibleKeys",
    "adapter_of",
    "adapter_source",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "set_peft_model_state_dict",
]


class IncompatibleKeys(NamedTuple):
    """Result of loading the tensors of an adapter.

    Attributes:
        missing_keys: names of tensors that the adapter has and that were not given.
        unexpected_keys: names of tensors that were given and that the adapter does not have.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def get_peft_model_state_dict(
    model: Any,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """Return the tensors of an adapter by PEFT's names, such as `base_model.model.….q_proj.lora_A.weight`.

    Args:
        model: model with the adapter.
        state_dict: values of the parameters of the adapters, by their names in the model; None: those of the model.
        adapter_name: name of the adapter.
        unwrap_compiled: whether the model may be the result of `torch.compile`.
        save_embedding_layers: whether to add the embedding and the output head of the base; "auto": if the vocabulary
            was resized.

    Raises:
        MethodError: there is no such adapter, or `state_dict` lacks a parameter.
    """
    model = getattr(model, "_orig_mod", model) if unwrap_compiled else model
    adapter = adapter_of(model, adapter_name)
    always = None if save_embedding_layers == "auto" else bool(save_embedding_layers)
    with values_of(model, state_dict):
        tensors = {**embedding_tensors(adapter, always), **adapter_tensors(adapter)}
        return {
            name: tensor.detach() if state_dict is None else tensor.detach().clone() for name, tensor in tensors.items()
        }


def set_peft_model_state_dict(
    model: Any,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> IncompatibleKeys:
    """Set the tensors of an adapter that the model has; the result of `get_peft_model_state_dict` is accepted.

    The prompt of P-tuning and of prefix tuning with a projection replaces the network that computes it.

    Args:
        model: model with the adapter.
        peft_model_state_dict: tensors by PEFT's names.
        adapter_name: name of the adapter.
        ignore_mismatched_sizes: whether tensors of other shapes are left out with a warning.
        low_cpu_mem_usage: without effect.

    Raises:
        MethodError: there is no such adapter.
        AdapterError: a tensor has another shape.
    """
    adapter = adapter_of(model, adapter_name)
    own = adapter_tensors(adapter)
    known = with_known_names(peft_model_state_dict, own, "the state dict")
    embeddings = embedding_tensors(adapter, always=True)
    taken = {name: tensor for name, tensor in known.items() if name in own}
    for name, tensor in list(taken.items()):
        if tensor.shape == own[name].shape:
            continue
        message = f"{name} is {tuple(tensor.shape)}, and the adapter has {tuple(own[name].shape)}"
        if not ignore_mismatched_sizes:
            raise AdapterError(f"{message}; give the configuration with which the tensors were saved")
        warn(f"not loaded: {message}", stacklevel=2)
        del taken[name]
    with torch.no_grad():
        if taken:
            _load(adapter, own, taken)
        for name, parameter in embeddings.items():
            if name in known:
                parameter.copy_(known[name])
    invalidate_cached_tensors()
    unexpected = [name for name in known if name not in own and name not in embeddings]
    return IncompatibleKeys([name for name in own if name not in taken], unexpected)


def _load(adapter: Any, own: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> None:
    prompt = next((part for part in ("virtual_tokens", "prefix") if hasattr(adapter, part)), None)
    if prompt is not None and "prompt_embeddings" in taken:
        trained = getattr(adapter, prompt)
        if trained.encoder is not None:
            trained.encoder = None
            values = own["prompt_embeddings"].detach().clone()
            trained.embeddings = nn.Parameter(values[: len(trained.embeddings)], trained.embeddings.requires_grad)
    tensors = {name: taken.get(name, tensor).detach().to(tensor.device, copy=True) for name, tensor in own.items()}
    adapter.load_file_tensors(tensors, peft_config_of(adapter))
    of_method = {*adapter.file_tensors(), *adapter.parameters()}
    for name in own.keys() - of_method:
        own[name].copy_(tensors[name])


def load_peft_weights(
    model_id: str | Path, device: str | None = None, key_mapping: Mapping[str, str] | None = None, **kwargs: Any
) -> dict[str, Tensor]:
    """Return the tensors of an adapter on disk or on the Hub, by PEFT's names.

    Args:
        model_id: folder of the adapter, or its id on the Hub.
        device: device of the tensors; None: the CPU.
        key_mapping: not supported.
        kwargs: `subfolder`, `revision`, `token` and `cache_dir`; others have no effect.

    Raises:
        AdapterError: there is no adapter, or it is damaged.
    """
    folders = open_adapters(adapter_source(model_id, key_mapping=key_mapping, **kwargs)).folders
    if len(folders) > 1:
        raise AdapterError(f"{model_id} holds the adapters {', '.join(folders)}; give the folder of one of them")
    (folder,) = folders.values()
    return {name: tensor.to(device or "cpu") for name, tensor in folder.tensors().items()}


def adapter_source(
    model_id: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    key_mapping: object = None,
    **_: Any,
) -> str | Path:
    """Return the folder of an adapter, with weights in safetensors; one on the Hub is fetched.

    Raises:
        AdapterError: the Hub did not give it.
        MethodError: `key_mapping` is given.
    """
    if key_mapping:
        raise MethodError("key_mapping renames tensors while they are loaded; rename those in the file instead")
    path = Path(model_id)
    if path.exists():
        return in_safetensors(path / (subfolder or ""))
    if str(model_id).count("/") != 1 or str(model_id).startswith((".", "/", "~")):
        return model_id  # no id of the Hub: an error where it is opened
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    folder = _fetched(str(model_id), subfolder, (*ADAPTER_FILES, *TOKENIZER_FILES), hub)
    if not (folder / TENSORS).is_file():
        folder = _fetched(str(model_id), subfolder, (CONFIG, PICKLE), hub)
    return in_safetensors(folder)


def _fetched(model_id: str, subfolder: str | None, files: Iterable[str], hub: Mapping[str, Any]) -> Path:
    """Return the folder with the files of an adapter on the Hub.

    Raises:
        AdapterError: the Hub did not give it.
    """
    names = [f"{subfolder}/{name}" if subfolder else name for name in files]
    try:
        return Path(snapshot_download(model_id, allow_patterns=names, **hub)) / (subfolder or "")
    except Exception as error:  # also those of the client's HTTP library, whichever it is
        raise not_fetched(model_id, error) from error


def adapter_of(model: Any, name: str) -> Any:
    """Return an adapter of a model by its name.

    Raises:
        MethodError: there is no such adapter.
    """
    adapters = attached(model)
    if name not in adapters:
        raise MethodError(f"this model has no adapter {name!r}; it has {', '.join(map(repr, adapters)) or 'none'}")
    return adapters[name]
