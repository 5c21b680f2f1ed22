"""Identity of a base: the config values that its outputs depend on, and hashes of its tensors.

A checkpoint stores the exact identity (`exact_identity`): a run continues over the same base only. An adapter stores an
identity that is the same for all copies of a base (`base_note`), whatever their dtype, quantization, class or device.
The tensors of copies are compared as files where both models are as `load_base` opened them, and in memory otherwise.
Quantized and fp16 weights in memory are not compared with others, since rounding has changed them.
"""

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightConverter

from peftly.injection import copied_modules, is_within, owner, task_modules
from peftly.kernels import is_quantized
from peftly.models.base_spec import BaseSpec
from peftly.models.contents import weights_files
from peftly.models.tensor_hashes import (
    FileIdentity,
    file_identity,
    guard_of,
    hashes_in_files,
    hashes_in_memory,
    kind_of,
)

__all__ = [
    "base_note",
    "exact_difference",
    "exact_identity",
    "note_difference",
    "remember_files",
    "remember_whole",
    "rows_when_opened",
    "weights_identity",
]

_WITHOUT_EFFECT = (
    r"_.*|.*(cache|dtype|name_or_path|version)|output_.*|id2label|label2id|architectures|auto_map"
    r"|chunk_size_feed_forward|finetuning_task|gradient_checkpointing|pretraining_tp|problem_type|quantization_config"
    r"|return_dict|task_specific_params|tokenizer_class|torchscript"
)
"""Names of config values that do not change what is computed from the tensors."""

_WITHOUT_EFFECT_ON_ADAPTERS = (
    r".*drop.*|.*token_ids?|init.*|tie_.*|vocab_size|max_position_embeddings|summary_.*"
    r"|do_sample|early_stopping|length_penalty|(max|min)_length|no_repeat_ngram_size|num_beams|temperature|top_[kp]"
)
"""Names of further values: of training and generation, or which the shapes of the tensors show."""


class _OpenedFiles(NamedTuple):
    """Files that the tensors of a model are from.

    Attributes:
        files: safetensors files; empty where the tensors are from files of another kind.
        guards: guards of the parameters and buffers when the model was opened.
        num_rows: size of the first dimension of each tensor when the model was opened.
        quantized: paths of the layers that were quantized when the model was opened.
    """

    files: tuple[FileIdentity, ...] = ()
    guards: Mapping[str, Any] = MappingProxyType({})
    num_rows: Mapping[str, int] = MappingProxyType({})
    quantized: tuple[str, ...] = ()


class _WholeBase(NamedTuple):
    """Identities of a base from the time before its tensors were sharded over processes.

    Attributes:
        exact: result of `exact_identity`.
        notes: results of `base_note`, by the modules that an adapter copies.
    """

    exact: dict[str, Any]
    notes: Mapping[tuple[str, ...], dict[str, Any]]


_OPENED: WeakKeyDictionary[Any, _OpenedFiles] = WeakKeyDictionary()
_WHOLE: WeakKeyDictionary[Any, _WholeBase] = WeakKeyDictionary()


def remember_files(model: Any, files: tuple[FileIdentity, ...]) -> None:
    """Remember which files the tensors of a model are from, which has just been opened.

    Args:
        model: model without adapters.
        files: result of `weights_identity`.
    """
    num_rows = {name: len(tensor) for name, tensor in _tensors(model).items() if tensor.ndim}
    _OPENED[model] = _OpenedFiles(files, _guards(model), num_rows, _quantized_paths(model))


def rows_when_opened(model: Any, name: str) -> int | None:
    """Return the number of rows that a tensor had when `load_base` opened the model; None: another tool opened it."""
    return _OPENED.get(model, _OpenedFiles()).num_rows.get(name)


def remember_whole(model: Any, adapters: Iterable[str]) -> None:
    """Remember the identity of a base whose tensors are about to be sharded, so that no process has them whole.

    Args:
        model: model with these adapters.
        adapters: names of its adapters.
    """
    copied = {tuple(sorted(copied_modules(model, adapter))) for adapter in adapters}
    _WHOLE[model] = _WholeBase(exact_identity(model), {paths: base_note(model, paths) for paths in copied})


def weights_identity(base: BaseSpec) -> tuple[FileIdentity, ...]:
    """Return the identities of the safetensors files of a base; empty where it has none, or they are not here yet."""
    try:
        return tuple(map(file_identity, weights_files(base.file_names, base.source)))
    except (OSError, ValueError):
        return ()


def exact_identity(model: Any) -> dict[str, Any]:
    """Return the identity of the base of a model for a checkpoint: config values, dtype, and a hash of each tensor.

    The tensors are the frozen parameters and the persistent buffers that belong to no adapter, without those of modules
    that all adapters replace by trained copies.
    """
    if model in _WHOLE:
        return _WHOLE[model].exact
    named = dict(model.named_parameters(remove_duplicate=False))
    adapters = {owner(name) for name in named} - {""}
    replaced = [set(copied_modules(model, adapter)) for adapter in adapters]
    unused = sorted(set.intersection(*replaced)) if replaced else []
    tensors = {
        name: tensor
        for name, tensor in _tensors(model).items()
        if not (name in named and named[name].requires_grad) and not tensor.is_meta and not is_within(name, unused)
    }
    return {
        "dtype": str(getattr(model, "dtype", None)),
        "config": _config_values(model, _WITHOUT_EFFECT),
        "tensors": hashes_in_memory(model, tensors, rounded=False),
    }


def exact_difference(now: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """Return the first difference between two results of `exact_identity`; None: they are the same base.

    Args:
        now: identity of this base.
        saved: identity in a checkpoint.
    """
    if now["dtype"] != saved["dtype"]:
        return f"the dtype is {now['dtype']} and was {saved['dtype']}"
    config = _config_difference(now["config"], saved["config"], rel_tol=0.0)
    if config is not None:
        return config
    tensors, saved_tensors = now["tensors"], saved["tensors"]
    for name in tensors | saved_tensors:
        if name not in tensors or name not in saved_tensors:
            return f"it {'has no' if name in saved_tensors else 'also has'} {name}"
        if tensors[name] != saved_tensors[name]:
            return f"{name} has other values"
    return None


def base_note(model: Any, copied: Sequence[str]) -> dict[str, Any]:
    """Return the identity of the base of a model for the notes of an adapter.

    Args:
        model: model with the adapter.
        copied: paths of the modules that the adapter replaces by trained copies.
    """
    if model in _WHOLE:
        return _WHOLE[model].notes.get(tuple(sorted(copied)), {})
    from_files, tensors = _comparable_hashes(model, copied)
    config = _config_values(model, f"{_WITHOUT_EFFECT}|{_WITHOUT_EFFECT_ON_ADAPTERS}")
    return {
        "config": {name: value for name, value in config.items() if value is not None},
        "from_files": from_files,
        "tensors": {kind: " ".join(hashes) for kind, hashes in tensors.items()},
    }


def note_difference(model: Any, copied: Sequence[str], note: object) -> str | None:
    """Return the difference between the base of a model and the base of an adapter; None: no difference is known.

    Args:
        model, copied: as for `base_note`.
        note: `base_note` of the adapter's training, as its file holds it; anything else has no known difference.
    """
    if not isinstance(note, Mapping) or not isinstance(note.get("config"), Mapping):
        return None
    now = base_note(model, copied)
    if not now:  # of a sharded base, for an adapter that came later
        return None
    config = _config_difference(now["config"], note["config"], rel_tol=1e-6)
    if config is not None:
        return config
    if now["from_files"] != note.get("from_files") and _are_converted(model):
        return None
    return _tensor_difference(now["tensors"], note.get("tensors"))


def _tensors(model: Any) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of the base of a model, with the constants of quantized weights."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not owner(name)
    }


def _guards(model: Any) -> dict[str, Any]:
    """Return the guards of all parameters and buffers of the base of a model."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: guard_of(tensor) for name, tensor in named if not owner(name)}


def _quantized_paths(model: Any) -> tuple[str, ...]:
    return tuple(path for path, layer in model.named_modules() if is_quantized(layer))


def _comparable_hashes(model: Any, copied: Sequence[str]) -> tuple[bool, Mapping[str, Sequence[str]]]:
    """Return whether the tensors of a base are those in its files, and their hashes by `kind_of` the tensors.

    Hashes of tensors in memory leave out quantized weights, weights on other devices than the model's, modules that the
    adapter replaces, new heads, and rows that were added to tables after the base was opened.
    """
    opened = _OPENED.get(model, _OpenedFiles())
    if opened.files and _guards(model) == opened.guards:
        with suppress(OSError, SafetensorError):
            if tuple(file_identity(Path(file.path)) for file in opened.files) == opened.files:
                return True, hashes_in_files(opened.files)
    # A layer that was dequantised since then has the values of the quantised layer, which a copy opened again has, too.
    quantized = (*_quantized_paths(model), *opened.quantized)
    if getattr(model, "hf_quantizer", None) is not None and not quantized:
        return False, {}  # the format of another library, which may repack weights for a device
    replaced = [*copied, *task_modules(model)]
    tensors = {
        name: tensor[: opened.num_rows.get(name)] if tensor.ndim else tensor
        for name, tensor in _tensors(model).items()
        if not tensor.is_meta
        and not is_within(name, replaced)
        and (name.endswith(".bias") or not is_within(name, quantized))
    }
    hashes: dict[str, list[str]] = {}
    for name, hashed in hashes_in_memory(model, tensors, rounded=True).items():
        hashes.setdefault(kind_of(tensors[name]), []).append(hashed)
    return False, hashes


def _are_converted(model: Any) -> bool:
    """Return whether transformers opened a model with other tensors than those in its files: stacked or transposed."""
    return any(
        isinstance(conversion, WeightConverter) for conversion in getattr(model, "_weight_conversions", ()) or ()
    )


def _tensor_difference(now: Mapping[str, str], noted: object) -> str | None:
    """Return how many tensors of an adapter's base this base does not have; None: no difference is known.

    One of two copies may have tensors that the other lacks: a head, or weights that the other has quantized. Copies
    differ where, among the tensors of one shape, each has a tensor that the other lacks.
    """
    if not isinstance(noted, Mapping):
        return None
    num_different = num_compared = 0
    for kind, hashes in now.items():
        present, expected = (Counter(str(text).split()) for text in (hashes, noted.get(kind, "")))
        num_compared += expected.total()
        if present - expected and expected - present:
            num_different += (expected - present).total()
    return f"{num_different} of {num_compared} tensors have other values" if num_different else None


def _config_values(model: Any, ignored: str) -> dict[str, Any]:
    """Return the values of the config of a model by their names; a dot separates the parts of a nested name."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return {}
    pattern, values = re.compile(ignored), {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not pattern.fullmatch(str(key)):
                    add(f"{path}.{key}".removeprefix(".").removeprefix("rope_parameters."), inner)
        else:
            values[path] = value

    # An infinite number (Mamba's longest time step) is no JSON: its name is.
    add("", json.loads(json.dumps(config.to_dict(), default=str), parse_constant=str))
    return values


def _config_difference(now: Mapping[str, Any], saved: Mapping[str, Any], *, rel_tol: float) -> str | None:
    """Return the first difference of values that both configs have: other versions of transformers have other names."""
    for name, value in now.items():
        other = saved.get(name, value)
        are_numbers = isinstance(value, int | float) and isinstance(other, int | float)
        if not (math.isclose(value, other, rel_tol=rel_tol) if are_numbers else value == other):
            return f"{name} is {reprlib.repr(value)} and was {reprlib.repr(other)}"
    return None
