"""A base in a folder or on the Hub, opened by transformers: its class, dtype, devices and quantisation."""

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.errors import BaseModelError
from peftly.injection import output_heads, patch_quantized_layers
from peftly.kernels import blocks_of_size
from peftly.models.checks import check_quantization
from peftly.models.files import check_files, file_names
from peftly.models.heads import Head, seeded
from peftly.models.quantization import Quantization, finish
from peftly.models.tasks import TASKS, task_of_class
from peftly.utils import resolve_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import TaskName

__all__ = ["Opening", "open_files"]


class Opening(NamedTuple):
    """How a base is to be opened.

    Attributes:
        dtype: of its weights.
        devices: the one that it is on afterwards, or how it is spread over several.
        quantization: how its linear layers are to be kept; None: as its files have them.
        head: of its task.
        allow_pickle: also from old `.bin` weights.
    """

    dtype: "torch.dtype"
    devices: "torch.device | str | Mapping[str, Any]"
    quantization: Quantization | None
    head: Head
    allow_pickle: bool


def open_files(spec: str, source: Path | str, how: Opening) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model and tokenizer of a folder or a Hub id; nothing of it is executed.

    Raises:
        BaseModelError: there is no such model there, or it cannot be opened like that.
    """
    import transformers

    check_files(spec, file_names(spec, source), allow_pickle=how.allow_pickle)
    trust = {"trust_remote_code": False, "local_files_only": isinstance(source, Path)}
    config = transformers.AutoConfig.from_pretrained(source, **trust)
    check_quantization(spec, config, how.quantization)
    kind = _model_class(spec, config, how.head.task)
    where = _dtype_and_place(how, kind, config)
    own_labels = how.head.name_labels(config)
    model, report = _weights(source, how, kind, config=config, **where, **trust)
    _finish_layers(spec, model, how)
    missing = how.head.finish(model, report, own_labels=own_labels)
    if missing:
        warnings.warn(f"{spec} has no weights for {_few(missing)}: they are random", stacklevel=3)
    return model, transformers.AutoTokenizer.from_pretrained(source, **trust)


def _dtype_and_place(how: Opening, kind: Any, config: Any) -> dict[str, Any]:
    """Return what `from_pretrained` is told of dtype, quantisation and devices."""
    import torch

    settings, packed_from = None, how.dtype
    if how.quantization is not None:
        settings = how.quantization.for_transformers(how.dtype, _heads(kind, config))
        packed_from = resolve_dtype(how.quantization.dtype or how.dtype)
    device_map: Any = how.devices
    if isinstance(how.devices, torch.device):  # quantised weights cannot be moved afterwards; all others are
        quantized = how.quantization is not None or getattr(config, "quantization_config", None) is not None
        device_map = {"": _own_one(how.devices)} if quantized else None
    return {"dtype": packed_from, "quantization_config": settings, "device_map": device_map}


def _weights(source: Path | str, how: Opening, kind: Any, **settings: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the model as transformers opens it, and what it reports of the files."""
    blocks = nullcontext() if how.quantization is None else blocks_of_size(how.quantization.block_size)
    with seeded(how.head.seed), blocks, warnings.catch_warnings():
        warnings.filterwarnings("error", "The following device_map keys do not match")
        model, report = kind.from_pretrained(
            source,
            use_safetensors=None if how.allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(how.head.labels),  # a head for other labels gives way to a new one
            **settings,
        )
    return model, report


def _finish_layers(spec: str, model: "PreTrainedModel", how: Opening) -> None:
    """Let quantised layers be peftly's, and refuse what came out otherwise than it was wanted."""
    import torch

    is_spread = not isinstance(how.devices, torch.device)
    if is_spread and any(parameter.is_meta for parameter in model.get_input_embeddings().parameters()):
        raise BaseModelError(
            f"device_map leaves the embeddings of {spec} waiting on disk or in memory: give them a device"
        )
    if how.quantization is not None:
        finish(model, how.quantization, how.dtype)
    if not patch_quantized_layers(model) and how.quantization is not None:
        raise BaseModelError(f"{spec} has no linear layer to quantise: leave quantization={how.quantization.kind} out")


def _own_one(device: "torch.device") -> "torch.device":
    """Return a device with its number: of several processes each has a GPU of its own."""
    import torch

    if device.type == "cpu" or ":" in str(device):
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def _heads(kind: Any, config: Any) -> list[str]:
    """Return the paths of the heads that a model will have."""
    import torch

    with torch.device("meta"):
        model = kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
    return [] if model.base_model is model else output_heads(model)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _model_class(spec: str, config: Any, task: "TaskName | None") -> Any:
    """Return the transformers class that `config` names, or that of the task where this is another."""
    import transformers

    named = next(iter(config.architectures or ()), None)
    found = getattr(transformers, named or "", None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        if task in (None, task_of_class(found, config)):
            return found
        named = None
    if named is None:
        return getattr(transformers, TASKS[task or "causal_lm"].auto_class)
    raise BaseModelError(
        f"{spec} is a {named}, which transformers {transformers.__version__} does not have: "
        "update it if the model is new; code from a model's own repository is never run"
    )
