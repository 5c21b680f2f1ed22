"""Adapters to disk, in the format of Hugging Face PEFT: written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from peftly.adapters.adapter_set import names_saved_together
from peftly.adapters.arguments import check_model
from peftly.adapters.card import adapter_card
from peftly.adapters.checksums import with_checksums
from peftly.adapters.embeddings import embedding_tensors
from peftly.adapters.files import (
    ADAPTER_FILES,
    BASE,
    CARD,
    CONFIG,
    HEAD_SEED,
    LABELS,
    METHOD,
    NOTES,
    PEFT_LIMIT,
    PROBLEM_TYPE,
    PROBLEM_TYPES,
    QUANTIZATION,
    TASK,
    TENSORS,
    TOGETHER,
    TOKENIZER,
    TRAINING,
)
from peftly.adapters.folder import AdapterFolder, read_notes
from peftly.adapters.method_settings import has_own_format
from peftly.adapters.own_tokenizer import TOKENIZER_FILES, write_tokenizer
from peftly.adapters.parameter_targets import names_of_experts, with_parameter_targets
from peftly.adapters.peft_limits import peft_limit
from peftly.adapters.state import state_of
from peftly.adapters.training_quantization import training_quantization
from peftly.errors import AdapterError, ConfigError, MethodError
from peftly.injection import (
    NEW_PARAMETERS_SEED,
    BiasCopy,
    adapted_layers,
    base_modules,
    copied_buffers,
    copied_modules,
    copied_parameters,
    is_within,
    new_modules,
    short_names,
)
from peftly.models import (
    TASKS,
    auto_mapping,
    base_note,
    labels_of,
    output_kind,
    peft_task_type,
    pooling_of,
    task_of,
)
from peftly.utils import delete_file, make_folder, replacing_files, warn, write_new_file, write_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from peftly.methods import Adapter

__all__ = ["PEFT_VERSION", "adapter_tensors", "peft_config_of", "save_adapter"]

PEFT_VERSION = "0.21.2"
"""Version of PEFT whose format is written."""


def save_adapter(
    model: Any,
    folder: str | Path,
    *,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    card: str | None = None,
    embeddings: bool | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write an adapter of `model` to `folder`, so that PEFT and `load_adapter` can read it.

    The folder holds the earlier adapters or the new ones, complete, also if the process is killed or the power fails.

    Args:
        model: a model with adapters.
        folder: folder to write, created if it is missing. The adapter in it, or adapters that were saved together in
            it, are replaced; other files stay, and so does a README.md in a folder without an adapter.
        name: name of the adapter. None: the only adapter, or all adapters, each in a folder of its name in `folder`.
        notes: JSON values to store with the adapter, by key; see `AdapterFolder.notes`.
        card: text of the model card; None: a short one.
        embeddings: whether the file also holds the embedding and the output head of the base, as with PEFT's
            `save_embedding_layers`. None: if the vocabulary was resized, since the embeddings of new tokens are in no
            file of the base.
        tokenizer: tokenizer to save with the adapter, one with other tokens or another chat template than the base's.
            None: the tokenizer with which `load` opened the adapter, if it came with one.

    Returns:
        `folder`.

    Raises:
        AdapterError: the folder cannot be written.
        MethodError: the model has no adapter, or none of this name.
    """
    check_model(model)
    adapters = state_of(model).adapters
    if name is not None and name not in adapters:
        raise MethodError(f"this model has no adapter {name!r}; it has {', '.join(map(repr, adapters))}")
    folder, state = Path(folder), state_of(model)
    names = [name] if name is not None else list(adapters)
    together = {} if len(names) == 1 else {TOGETHER: names}
    note_of_base = cache(partial(base_note, model))  # many adapters share one
    try:
        with replacing_files(folder, deletes=_replaced(folder, tokenizer), markers=(CONFIG,)) as scratch:
            for saved in names:
                base = note_of_base(tuple(copied_modules(model, saved)))
                own = tokenizer or state.tokenizers.get(saved)
                all_notes = {BASE: base, **(notes or {}), **together, **({} if own is None else {TOKENIZER: True})}
                inner = saved if together else "."
                _write(adapters[saved], scratch / inner, all_notes, card, embeddings)
                write_tokenizer(scratch / inner, own, state.generation and model.generation_config)
                if (folder / inner / CARD).exists() and not (folder / inner / CONFIG).exists():
                    delete_file(scratch / inner / CARD)  # the file in the folder is not the card of an adapter
    except ConfigError as error:  # another process, or a symbolic link
        raise AdapterError(str(error)) from error
    except OSError as error:
        raise AdapterError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error
    return folder


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors that the file of an adapter holds, by their names in the file."""
    copies = copied_parameters(adapter.model, adapter.name, adapter.copies_prefix)
    buffers = copied_buffers(adapter.model, adapter.name, adapter.copies_prefix)
    return {**adapter.file_tensors(), **copies, **buffers}


def _replaced(folder: Path, tokenizer: object = None) -> Iterator[str]:
    """Yield the files of the adapter in a folder, or of adapters that were saved together there.

    Args:
        folder: folder of the adapters.
        tokenizer: tokenizer that is about to be written; None: none. Files of another tokenizer stay only if somebody
            else has put them into the folder.
    """
    for name in ("", *(f"{name}/" for name in names_saved_together(folder))):
        if (folder / name / CONFIG).is_file():
            yield from (f"{name}{file}" for file in ADAPTER_FILES)
            if tokenizer is not None or _has_written_tokenizer(folder / name):
                yield from (f"{name}{file}" for file in TOKENIZER_FILES)


def _has_written_tokenizer(folder: Path) -> bool:
    try:
        return bool(read_notes(folder).get(TOKENIZER))
    except AdapterError:  # damaged, and replaced now
        return False


def _write(adapter: Adapter, folder: Path, notes: Mapping[str, Any], card: str | None, embeddings: bool | None) -> None:
    """Write the files of one adapter."""
    base = _base_of(adapter)
    make_folder(folder)
    of_base = {name: tensor.detach().cpu().clone() for name, tensor in embedding_tensors(adapter, embeddings).items()}
    write_tensors(folder / TENSORS, {**of_base, **_on_cpu(adapter_tensors(adapter))}, {"format": "pt"})
    if training := _on_cpu(adapter.training_tensors()):
        write_tensors(folder / TRAINING, training, {"format": "pt"})
    peft_config = peft_config_of(adapter)
    limit = None if has_own_format(peft_config) else peft_limit(adapter)
    if limit is not None:
        warn(f"the adapter is saved for peftly only: {limit}", stacklevel=3)
    all_notes = {**_own_notes(adapter), **notes, **({} if limit is None else {PEFT_LIMIT: limit})}
    _write_json(folder / CONFIG, peft_config)
    _write_json(folder / NOTES, with_checksums(folder, all_notes))
    labels = all_notes.get(LABELS, ())
    outputs = output_kind(adapter.model.config) if labels else "class"
    pooling = pooling_of(adapter.model)
    card = card or adapter_card(
        base,
        adapter.config,
        labels=labels,
        pooling=pooling,
        outputs=outputs,
        peft_limit=limit,
        tags=_tags(adapter.model, base),
        pipeline="text-generation" if peft_config["task_type"] == "CAUSAL_LM" else None,
    )
    write_new_file(folder / CARD, card.encode("utf-8"))
    AdapterFolder.read(folder)  # what is written can be opened


def _tags(model: Any, base: str | None) -> list[str]:
    """Return the tags of a card besides those of the method: by them the Hub finds the adapters of a base."""
    if not isinstance(model, PreTrainedModel):
        return []
    of_base = [f"base_model:adapter:{base}"] if base else []
    return [*of_base, "transformers", *(getattr(model, "model_tags", None) or ())]


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return fp32 copies: parameters may share memory, which a safetensors file cannot express.

    Raises:
        AdapterError: a tensor has no values here.
    """
    if offloaded := next((name for name, tensor in tensors.items() if tensor.is_meta), None):
        raise AdapterError(
            f"{offloaded} is offloaded, so it cannot be saved; first call "
            "accelerate.hooks.remove_hook_from_submodules(model)"
        )
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in copies.items()}


def _base_of(adapter: Adapter) -> str | None:
    config = getattr(adapter.model, "config", None)
    return getattr(adapter.model, "name_or_path", None) or getattr(config, "name_or_path", None) or None


def peft_config_of(adapter: Adapter) -> dict[str, Any]:
    """Return the content of the `adapter_config.json` of an adapter."""
    copied = copied_modules(adapter.model, adapter.name)
    task_type = None if _keeps_head_of_base(adapter) else peft_task_type(adapter.model)
    peft_type, settings = adapter.peft_type, adapter.peft_config()
    if adapter.needs_task_in_peft and task_type is None and not peft_type.startswith("PEFTLY_"):
        # PEFT would open the file and leave the prompt out.
        peft_type, settings = f"PEFTLY_{peft_type}", {"settings": adapter.config.model_dump(mode="json")}
    peft_config = {
        "auto_mapping": auto_mapping(adapter.model) if task_type is None else None,
        "base_model_name_or_path": _base_of(adapter),
        "inference_mode": True,
        "peft_type": peft_type,
        "peft_version": PEFT_VERSION,
        "revision": state_of(adapter.model).revision,
        "task_type": task_type,
        "modules_to_save": short_names(adapter.model, copied) if copied else None,
        **settings,
    }
    return _with_expert_names(adapter, peft_config) if peft_type == "LORA" else peft_config


def _with_expert_names(adapter: Adapter, peft_config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of LoRA in which PEFT takes no layer for the stacked experts of the model."""
    names = names_of_experts(adapter.model)
    layers = (
        path for path, _, change in adapted_layers(adapter.model, adapter.name) if not isinstance(change, BiasCopy)
    )
    taken = [path for path in layers if path.rpartition(".")[2] in names]
    if not taken:
        return peft_config
    kept = [name for name in peft_config["target_modules"] if name.rpartition(".")[2] not in names]
    return with_parameter_targets({**peft_config, "target_modules": kept}, taken)


_PEFT_HEADS = ("classifier", "score")
"""Ends of the paths of modules that PEFT replaces by copies from the file, for a classifier."""


def _keeps_head_of_base(adapter: Adapter) -> bool:
    """Return whether PEFT would ask for the head of a classifier that the adapter trains no copy of.

    PEFT opens such a file where it names no task. A prompt needs a task there.
    """
    task, copied = task_of(adapter.model), copied_modules(adapter.model, adapter.name)
    if task is None or not TASKS[task].is_classification or pooling_of(adapter.model) or adapter.needs_task_in_peft:
        return False
    return any(path.endswith(_PEFT_HEADS) and not is_within(path, copied) for path, _ in base_modules(adapter.model))


def _own_notes(adapter: Adapter) -> dict[str, Any]:
    task, quantization = task_of(adapter.model), training_quantization(adapter.model, adapter.name)
    notes: dict[str, Any] = {METHOD: adapter.config.model_dump(mode="json")}
    if task and TASKS[task].is_classification:
        notes[LABELS] = labels_of(adapter.model)
        if (problem_type := getattr(adapter.model.config, "problem_type", None)) in PROBLEM_TYPES:
            notes[PROBLEM_TYPE] = problem_type
    if _keeps_head_of_base(adapter):
        notes[TASK] = task
    if new_modules(adapter.model):
        notes[HEAD_SEED] = getattr(adapter.model, NEW_PARAMETERS_SEED)
    if quantization is not None:
        notes[QUANTIZATION] = quantization.model_dump(mode="json")
    return notes


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_new_file(path, text.encode("utf-8"))
