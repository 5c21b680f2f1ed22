"""A base in a folder or on the Hub, opened by transformers: its class, dtype, devices and quantization."""

import copy
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.errors import BaseModelError
from peftly.injection import embedding_in, output_heads, patch_quantized_layers
from peftly.kernels import blocks_of_size
from peftly.models.base_spec import BaseSpec
from peftly.models.checks import check_quantization
from peftly.models.heads import Head, seeded
from peftly.models.pooled import pooled_class, pooled_class_named
from peftly.models.quantization import Quantization, finish_quantization
from peftly.models.tasks import TASKS, is_encoder, task_of_class
from peftly.utils import resolve_dtype, warn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from peftly.data import TaskName

__all__ = ["LoadOptions", "model_class_for", "open_model"]


class LoadOptions(NamedTuple):
    """Options for opening a base.

    Attributes:
        dtype: dtype of the weights.
        devices: device of the whole model, or a device map.
        quantization: quantization of the linear layers; None: as in the base's files.
        head: head of the task.
        allow_pickle: whether pickled `.bin` weights may be opened.
    """

    dtype: "torch.dtype"
    devices: "torch.device | str | Mapping[str, Any]"
    quantization: Quantization | None
    head: Head
    allow_pickle: bool


def open_model(base: BaseSpec, options: LoadOptions) -> "PreTrainedModel":
    """Return the model of a folder or a Hub id. No code in the repository is run.

    Raises:
        BaseModelError: the files are not those of a base, or cannot be opened with these options.
    """
    base.check_files(allow_pickle=options.allow_pickle)
    config: Any = copy.deepcopy(base.config)  # the head below changes it
    check_quantization(base.name, config, options.quantization)
    model_class = model_class_for(base.name, config, options.head)
    settings = _dtype_and_devices(options, model_class, config)
    has_own_labels = options.head.set_labels(config)
    model, report = _load_weights(base, options, model_class, config=config, **settings)
    _finish_layers(base.name, model, options)
    missing = options.head.finish(model, report, has_own_labels=has_own_labels)
    if missing:
        warn(f"{base.name} has no weights for {_shortened(missing)}: they are random", stacklevel=3)
    return model


def _dtype_and_devices(options: LoadOptions, model_class: Any, config: Any) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` about dtype, quantization and devices."""
    import torch

    quantization_config, dtype = None, options.dtype
    if options.quantization is not None:
        quantization_config = options.quantization.for_transformers(options.dtype, _head_paths(model_class, config))
        dtype = resolve_dtype(options.quantization.dtype or options.dtype)
    device_map: Any = options.devices
    if isinstance(options.devices, torch.device):  # quantized weights cannot be moved afterwards; all others are
        is_quantized = options.quantization is not None or getattr(config, "quantization_config", None) is not None
        device_map = {"": _device_of_process(options.devices)} if is_quantized else None
    return {"dtype": dtype, "quantization_config": quantization_config, "device_map": device_map}


def _load_weights(
    base: BaseSpec, options: LoadOptions, model_class: Any, **settings: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Return the model as transformers opens it, and transformers' report on the weights in the files."""
    blocks = nullcontext() if options.quantization is None else blocks_of_size(options.quantization.block_size)
    with seeded(options.head.seed), blocks, warnings.catch_warnings():
        warnings.filterwarnings("error", "The following device_map keys do not match")
        model, report = model_class.from_pretrained(
            base.source,
            use_safetensors=None if options.allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(options.head.labels),  # a new head replaces one with another number of labels
            **base.loading_settings,
            **settings,
        )
    return model, report


def _finish_layers(name: str, model: "PreTrainedModel", options: LoadOptions) -> None:
    """Patch quantized layers, and refuse a model that does not have the wanted devices or quantization."""
    import torch

    has_device_map, embedding = not isinstance(options.devices, torch.device), embedding_in(model)
    if has_device_map and embedding and any(parameter.is_meta for parameter in embedding.parameters()):
        raise BaseModelError(
            f"device_map leaves the embeddings of {name} waiting on disk or in memory: give them a device"
        )
    if options.quantization is not None:
        finish_quantization(model, options.quantization, options.dtype)
    if not patch_quantized_layers(model) and options.quantization is not None:
        raise BaseModelError(
            f"{name} has no linear layer to quantise: leave quantization={options.quantization.kind} out"
        )


def _device_of_process(device: "torch.device") -> "torch.device":
    """Return a device with its number. Of several processes on a machine, each has a GPU of its own."""
    import torch

    if device.type == "cpu" or ":" in str(device):
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def _head_paths(model_class: Any, config: Any) -> list[str]:
    """Return the paths of the heads that a model will have."""
    import torch

    with torch.device("meta"):
        has_factory = hasattr(model_class, "_from_config")
        model = model_class._from_config(config) if has_factory else model_class.from_config(config)
    return output_heads(model)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def model_class_for(name: str, config: Any, head: Head) -> Any:
    """Return the class of transformers that a base is opened with.

    Args:
        name: name of the base, for messages.
        config: config of the base.
        head: head of the task.

    Raises:
        BaseModelError: transformers has no such class, or the base does not serve the head.
    """
    if head.model_class is not None:
        return _named_class(name, head.model_class)
    model_class = _class_for_task(name, config, head.task)
    if head.pooling is None:
        return model_class
    if head.task != "sequence_classification":
        came = f"not for {head.task}" if head.task else "and no task was given; add task='sequence_classification'"
        raise BaseModelError(f"pooling={head.pooling!r} is for sequence_classification, {came}")
    if head.pooling == "first" and not is_encoder(config):
        raise BaseModelError(f"{name} is a decoder, whose first token sees no other; take pooling='mean' for its head")
    if not hasattr(model_class, "_from_config"):  # an auto class
        model_class = model_class._model_mapping[type(config)]
    if getattr(model_class, "pooling", head.pooling) != head.pooling:
        raise BaseModelError(f"{name} has a head on pooling={model_class.pooling!r}, not on {head.pooling!r}")
    return pooled_class(model_class, head.pooling)


def _named_class(name: str, class_name: str) -> Any:
    """Return the class of transformers with this name.

    Raises:
        BaseModelError: transformers has no such class of models.
    """
    import transformers

    found = getattr(transformers, class_name, None)
    is_auto = isinstance(found, type) and class_name.startswith("Auto") and hasattr(found, "from_config")
    if is_auto or (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return found
    raise BaseModelError(
        f"{name}: model_class={class_name!r} is no class of models of transformers {transformers.__version__}, such as "
        "AutoModel, AutoModelForQuestionAnswering or BertForNextSentencePrediction"
    )


def _class_for_task(name: str, config: Any, task: "TaskName | None") -> Any:
    """Return the class that `config` names, or the class of transformers for the task if that one has another task."""
    import transformers

    architecture = next(iter(config.architectures or ()), None)
    named_class = getattr(transformers, architecture or "", None) or pooled_class_named(architecture or "")
    if isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel):
        if task in (None, task_of_class(named_class, config)):
            return named_class
        architecture = None
    if architecture is None:
        is_named = task is not None or type(config) in transformers.AutoModelForCausalLM._model_mapping
        return getattr(transformers, TASKS[task or "causal_lm"].auto_class if is_named else "AutoModel")
    raise BaseModelError(
        f"{name} is a {architecture}, which transformers {transformers.__version__} does not have: "
        "update it if the model is new; code from a model's own repository is never run"
    )
