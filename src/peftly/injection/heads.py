"""The head of a model: its own modules outside the body that it shares with the models of other tasks.

Classes of transformers tell by `base_model_prefix` which child is the body, and the tables of the auto classes tell
which classes are bodies and which have the head of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto import modeling_auto

from peftly.injection.layers import base_modules

__all__ = ["body_of", "is_body", "output_heads", "parts_without", "vocabulary_head"]


def _class_names(start: str) -> frozenset[str]:
    """Return the names of the classes in the tables of auto classes that begin with `start`."""
    tables = [table for name, table in vars(modeling_auto).items() if name.startswith(start) and "_NAMES" in name]
    values = [value for table in tables for value in table.values()]
    return frozenset(name for value in values for name in ([value] if isinstance(value, str) else value))


# Models without a body of their own (ParakeetForCTC) are in the table of bodies, and some bodies are in those of tasks.
_TASK_CLASSES = frozenset(name for name in _class_names("MODEL_FOR_") if "For" in name)
_BODIES = frozenset(name for name in _class_names("MODEL_MAPPING") if "For" not in name)


def body_of(model: Any) -> Any:
    """Return the part of a model that it shares with the models of other tasks; the model itself, if it is a body.

    It is the `base_model` of transformers. The models of `peftly.peft` have PEFT's `base_model` instead.
    """
    return getattr(model, model.base_model_prefix, model)


def is_body(model: nn.Module) -> bool:
    """Return whether a model is of a class of transformers without the head of a task, as `AutoModel` opens it."""
    return type(model).__name__ in _BODIES


def vocabulary_head(model: nn.Module) -> Any:
    """Return the module of a language model that computes the logits of all tokens; None for other models."""
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None


def output_heads(model: nn.Module) -> list[str]:
    """Return the paths of the modules that map the last hidden states to logits: a language model head or a classifier.

    The list is empty for a body, and for a module that is not a transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        return []
    vocabulary = vocabulary_head(model)
    if vocabulary is not None:
        return [path for path, module in base_modules(model) if module is vocabulary]
    if is_body(model):
        return []
    children = [(path, child) for path, child in model.named_children() if any(True for _ in child.parameters())]
    body = body_of(model)
    if body is not model:
        inside = {id(module) for _, module in base_modules(body)}
        outside = [(path, child) for path, child in children if id(child) not in inside]
        heads = [path for path, child in outside if all(module is not body for module in child.modules())]
        return _callable_parts(model, heads)
    if type(model).__module__.startswith("transformers.") and not _has_task(type(model)):
        return []
    # Without a body of its own a model has its head behind its last stack of layers.
    stacks = [index for index, (_, child) in enumerate(children) if _has_blocks(child)]
    return _callable_parts(model, [path for path, _ in children[stacks[-1] + 1 :]]) if stacks else []


def _callable_parts(model: nn.Module, paths: list[str]) -> list[str]:
    """Return these paths, with the members of a list of modules in its place: the list itself is never called."""
    parts = []
    for path in paths:
        module = model.get_submodule(path)
        is_list = isinstance(module, nn.ModuleList | nn.ModuleDict)
        members = [f"{path}.{name}" for name, _ in module.named_children()] if is_list else []
        parts += _callable_parts(model, members) if is_list else [path]
    return parts


def parts_without(model: nn.Module, path: str, layers: Sequence[str]) -> list[str]:
    """Return the paths of the largest modules at or inside `path` that have parameters and contain none of `layers`.

    Args:
        model: a model.
        path: path of one of its modules.
        layers: paths of layers.
    """
    if path in layers:
        return []
    module = model.get_submodule(path)
    if not any(layer.startswith(f"{path}.") for layer in layers):
        return _callable_parts(model, [path]) if any(True for _ in module.parameters()) else []
    return [part for name, _ in module.named_children() for part in parts_without(model, f"{path}.{name}", layers)]


def _has_task(model_class: type) -> bool:
    return not _TASK_CLASSES.isdisjoint(ancestor.__name__ for ancestor in model_class.__mro__)


def _has_blocks(module: nn.Module) -> bool:
    """Return whether a module is a stack of layers of transformers, or contains one."""
    return any(isinstance(part, PreTrainedModel | GradientCheckpointingLayer) for part in module.modules())
