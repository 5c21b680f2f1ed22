"""Adapters that PEFT loads without an error and computes otherwise, found when they are saved."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from peftly.adapters.parameter_targets import names_of_experts
from peftly.injection import BiasCopy, adapted_layers, base_modules, copied_modules, is_within, layers_read, short_names
from peftly.models import peft_task_type

if TYPE_CHECKING:
    from peftly.methods import Adapter

__all__ = ["peft_limit"]


def peft_limit(adapter: Adapter) -> str | None:
    """Return why PEFT cannot load an adapter, or computes other outputs with it, on this base; None: it can.

    Args:
        adapter: an attached adapter, of a type that PEFT has.
    """
    model, changes = adapter.model, adapted_layers(adapter.model, adapter.name)
    paths = [path for path, _, change in changes if path and not isinstance(change, BiasCopy)]
    if unread := [path for path in layers_read(model) if path in paths]:
        return (
            f"the model reads the weight of {_listed(unread)} instead of calling the layer, so PEFT has no effect there"
        )
    if adapter.peft_type == "LORA" and (renamed := list(_renamed(model, paths))):
        return f"PEFT looks for the tensors of {_listed(renamed)} under other names and leaves them out"
    if getattr(type(adapter), "uses_dora", False):
        taken = [path for path in paths if path.rpartition(".")[2] in names_of_experts(model)]
        if taken:
            return f"PEFT takes the names of {_listed(taken)} for stacked experts, and has no DoRA by weight; use lora"
    is_prefix_of_body = adapter.peft_type == "PREFIX_TUNING" and peft_task_type(model) == "FEATURE_EXTRACTION"
    if is_prefix_of_body and "past_key_values" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no keys and values (past_key_values), so PEFT leaves the prefix out"
    copied = copied_modules(model, adapter.name)
    names = tuple(short_names(model, copied))
    others = [
        path
        for path, module in base_modules(model)
        if names and path.endswith(names) and not is_within(path, copied) and module.state_dict()
    ]
    if others:
        return (
            f"PEFT takes {_listed(others)} for a module of modules_to_save ({', '.join(names)}), by the end of its name"
        )
    return None


def _renamed(model: Any, paths: Iterable[str]) -> Iterable[str]:
    """Yield the layers whose tensors PEFT renames as if they were those of a checkpoint of the model.

    PEFT undoes that only where the new name is an end of the old one.
    """
    if not isinstance(model, PreTrainedModel) or get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    for path in paths:
        name = f"{path}.lora_A.default.weight"
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        if not f".{path}.lora_A.default.weight".endswith(f".{name}"):
            yield path


def _listed(paths: list[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
