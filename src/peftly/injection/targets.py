"""Find layers of a model, by the names that a user gives or by their part in a transformer block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.heads import output_heads, vocabulary_head
from peftly.injection.layers import base_modules
from peftly.injection.patterns import first_matches
from peftly.injection.weight_uses import returns_several
from peftly.utils import warn

__all__ = [
    "ALL_LINEAR",
    "NEW_PARAMETERS",
    "NEW_PARAMETERS_SEED",
    "find_part",
    "find_targets",
    "is_part",
    "is_within",
    "matches_path",
    "new_modules",
    "short_names",
    "task_modules",
]

ALL_LINEAR = "all-linear"

NEW_PARAMETERS = "_peftly_new_parameters"
"""Attribute of a model: names of the parameters that the files of its base do not contain."""

NEW_PARAMETERS_SEED = "_peftly_new_parameters_seed"
"""Attribute of a model: seed that these parameters were drawn from."""

Part = Literal["keys and values", "attention output", "feed-forward output"]

_ATTENTION = r"(self_attn|encoder_attn|attention|self_attention|attn|SelfAttention|EncDecAttention|attention\.output)"
_PARTS: dict[Part, re.Pattern[str]] = {
    "keys and values": re.compile(
        r"\.(k_proj|v_proj|key|value|k_lin|v_lin|query_key_value|c_attn|qkv_proj|Wqkv"
        r"|(SelfAttention|EncDecAttention)\.[kv])$"
    ),
    "attention output": re.compile(rf"\.{_ATTENTION}\.(o_proj|out_proj|dense|c_proj|out_lin|Wo|o)$"),
    "feed-forward output": re.compile(
        r"(\.(down_proj|fc2|dense_4h_to_h|mlp\.c_proj|mlp\.Wo|ffn\.lin2|DenseReluDense\.wo)|(?<!attention)\.output\.dense)$"
    ),
}
"""Ends of the paths of these layers in the models of transformers."""

_CLASS_NAMES = {nn.Linear: "linear layer", Conv1D: "linear layer", nn.Embedding: "embedding"}


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    classes: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D),
    *,
    warns: bool = True,
) -> dict[str, nn.Module]:
    """Return the layers that `targets` names, by path, in the order of the model.

    Args:
        model: model to search.
        targets: `"all-linear"` (every linear layer except output heads and `task_modules`), a regular expression
            that must match a whole path, or a list of paths and ends of paths (`"q_proj"` matches
            `layers.0.self_attn.q_proj`).
        classes: classes of layers to search.
        warns: whether to warn about names in the list that match nothing.

    Raises:
        MethodError: nothing matches, or the regular expression is invalid.
    """
    layers = {
        path: layer for path, layer in base_modules(model) if isinstance(layer, classes) and not _is_special(layer)
    }
    wanted = " or ".join(dict.fromkeys(_CLASS_NAMES.get(layer_class, layer_class.__name__) for layer_class in classes))
    present = sorted({path.rpartition(".")[2] for path in layers})
    if targets == ALL_LINEAR:
        heads = [*output_heads(model), *_tied_to_embeddings(model, layers), *task_modules(model)]
        matched = {
            path: layer
            for path, layer in layers.items()
            if isinstance(layer, nn.Linear | Conv1D) and not is_within(path, heads)
        }
    elif isinstance(targets, str):
        matched = {path: layers[path] for path in first_matches([targets], layers, "target_modules")}
    else:
        ends = {end for path in layers for end in _ends(path)}
        unmatched = [target for target in targets if target not in ends]
        if unmatched and len(unmatched) == len(targets):
            raise MethodError(f"target_modules={_some(unmatched)} match no {wanted}; this model has {present}")
        if unmatched and warns:
            text = f"target_modules={_some(unmatched)} match no {wanted} and are passed over; this model has"
            warn(f"{text} {_some(present)}", stacklevel=5)
        names = set(targets)
        matched = {path: layer for path, layer in layers.items() if not names.isdisjoint(_ends(path))}
    if not matched and targets in {end for path in layers for end in _ends(path)}:
        raise MethodError(
            f"target_modules={targets!r} is a regular expression of whole paths, and matches none; give a list of "
            f"names: target_modules=[{targets!r}]"
        )
    if not matched:
        raise MethodError(f"target_modules={targets!r} matches no {wanted}; this model has {present}")
    if warns and targets == ALL_LINEAR and (stacked := _stacked_weights(model)):
        warn(
            f"target_modules={targets!r} leaves out {_some(stacked, 2)}: the experts there are stacked in one tensor "
            "and are no linear layers",
            stacklevel=5,
        )
    return matched


def _is_special(layer: nn.Module) -> bool:
    """Return whether a class of linear layers computes more, or something else, than a product with its weight.

    A router of experts (Llama 4, Phi MoE) returns scores besides the product, so nothing can be added to its output; a
    grouped layer (DeepSeek V4) multiplies each group of its input by a part of the weight.
    """
    kind: Any = type(layer)
    if kind in (nn.Linear, Conv1D, nn.Embedding):
        return False
    return returns_several(kind) or hasattr(layer, "n_groups")


def _tied_to_embeddings(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the layers whose weight is that of an embedding: they map hidden states to the vocabulary."""
    embeddings = {id(module.weight) for _, module in base_modules(model) if isinstance(module, nn.Embedding)}
    return [path for path, layer in layers.items() if id(layer._parameters.get("weight")) in embeddings]


def _stacked_weights(model: nn.Module) -> list[str]:
    """Return the paths of the parameters that hold the weights of several experts, (experts, features, features)."""
    return [
        f"{path}.{name}"
        for path, module in base_modules(model)
        if not isinstance(module, nn.modules.conv._ConvNd) and "expert" in f"{path} {type(module).__name__}".lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1
    ]


def _ends(path: str) -> list[str]:
    """Return a path and every end of it, as `matches_path` takes them: "a.b.c", "b.c" and "c"."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _some(names: list[str], most: int = 10) -> str:
    """Return names for a message, which may be many."""
    return f"{names[:most]} and {len(names) - most} more" if len(names) > most else str(names)


def find_part(model: nn.Module, part: Part) -> dict[str, nn.Module]:
    """Return the linear layers that form this part of the transformer blocks, by path, as their names tell.

    Raises:
        MethodError: no layer of the model has a name that is known for this part.
    """
    layers = {
        path: layer
        for path, layer in base_modules(model)
        if isinstance(layer, nn.Linear | Conv1D) and is_part(part, path)
    }
    if not layers:
        raise MethodError(
            f"no layer of this {type(model).__name__} has a name that is known for its {part}; "
            "name the layers in target_modules"
        )
    return layers


def is_part(part: Part, path: str) -> bool:
    """Return whether the name of the layer at `path` is known for this part of a transformer block."""
    return _PARTS[part].search(path) is not None


def task_modules(model: nn.Module) -> list[str]:
    """Return the paths of the modules of a task, which every adapter trains as full copies.

    These modules are a classifier (a language model head is not among them), and all modules that the files of the base
    do not contain.
    """
    heads = [] if vocabulary_head(model) is not None else output_heads(model)
    modules = [_with_parent(model, path) for path in new_modules(model) if not is_within(path, heads)]
    return list(dict.fromkeys([*heads, *modules]))


def _with_parent(model: nn.Module, path: str) -> str:
    """Return the path of the module around a new layer, such as a pooler, if everything in it is new; else `path`."""
    parent, parameters = path.rpartition(".")[0], getattr(model, NEW_PARAMETERS, ())
    names = [f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_parameters()] if parent else []
    return parent if names and set(names) <= set(parameters) else path


def is_within(path: str, modules: Sequence[str]) -> bool:
    """Return whether `path` is the path of one of `modules`, or of a module inside one of them."""
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def short_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return the shortest list of names that matches exactly these paths, as `find_targets` reads the list."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    matched = {path for path, _ in base_modules(model) if any(matches_path(end, path) for end in ends)}
    return ends if matched == set(paths) else sorted(paths)


def matches_path(target: str, path: str) -> bool:
    """Return whether `target` is `path`, or the last components of `path`."""
    return path == target or path.endswith(f".{target}")


def new_modules(model: Any) -> list[str]:
    """Return the paths of the modules that the files of a base do not contain, so that their values are random."""
    parameters: tuple[str, ...] = getattr(model, NEW_PARAMETERS, ())
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
