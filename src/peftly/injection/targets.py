"""Find layers of a model: by the names that a user gives, or by the part that they play in a transformer's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

import re
from collections.abc import Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS

__all__ = [
    "ALL_LINEAR",
    "base_modules",
    "find_part",
    "find_targets",
    "is_below",
    "names",
    "new_parts",
    "output_heads",
    "own_parts",
    "plays",
    "short_names",
]

ALL_LINEAR = "all-linear"

NEW_PARTS = "_peftly_new_parts"
"""Attribute of a model: the names of the parameters that were not in the files of its base."""

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
"""How the models of transformers call these layers."""

_KIND_NAMES = {nn.Linear: "linear layer", Conv1D: "linear layer", nn.Embedding: "embedding"}


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of `model` with their paths, without those that adapters have added."""
    return ((path, module) for path, module in model.named_modules() if LAYER_ADAPTERS not in path.split("."))


def find_targets(
    model: nn.Module, targets: str | Sequence[str], kinds: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
) -> dict[str, nn.Module]:
    """Return the layers that `targets` names, by path, in the model's order.

    Args:
        model: the model to search.
        targets: `"all-linear"` (every linear layer but the output head and `own_parts`), a regular expression that a
            whole path must match, or a list of paths and their ends (`"q_proj"` matches `layers.0.self_attn.q_proj`).
        kinds: the kinds of layers that may be named.

    Raises:
        MethodError: nothing matches, or a name in the list matches nothing.
    """
    layers = {path: layer for path, layer in base_modules(model) if isinstance(layer, kinds)}
    what = " or ".join(dict.fromkeys(_KIND_NAMES.get(kind, kind.__name__) for kind in kinds))
    present = sorted({path.rpartition(".")[2] for path in layers})
    if targets == ALL_LINEAR:
        heads = [*output_heads(model), *own_parts(model)]
        found = {
            path: layer
            for path, layer in layers.items()
            if isinstance(layer, nn.Linear | Conv1D) and not is_below(path, heads)
        }
    elif isinstance(targets, str):
        try:
            found = {path: layer for path, layer in layers.items() if re.fullmatch(targets, path)}
        except re.error as error:
            raise MethodError(f"target_modules={targets!r} is no regular expression: {error}") from None
    else:
        unmatched = [target for target in targets if not any(names(target, path) for path in layers)]
        if unmatched:
            raise MethodError(f"target_modules={unmatched} match no {what}; this model has {present}")
        found = {path: layer for path, layer in layers.items() if any(names(target, path) for target in targets)}
    if not found:
        raise MethodError(f"target_modules={targets!r} matches no {what}; this model has {present}")
    return found


def find_part(model: nn.Module, part: Part) -> dict[str, nn.Module]:
    """Return the layers that play a part in a transformer's blocks, by path, as their names say it.

    Raises:
        MethodError: no layer of the model has a name that is known to play this part.
    """
    found = {
        path: layer
        for path, layer in base_modules(model)
        if isinstance(layer, nn.Linear | Conv1D) and plays(part, path)
    }
    if not found:
        raise MethodError(
            f"no layer of this {type(model).__name__} has a name that is known for its {part}; "
            "name the layers in target_modules"
        )
    return found


def plays(part: Part, path: str) -> bool:
    """Whether the layer at `path` plays this part, as its name says it."""
    return _PARTS[part].search(path) is not None


def output_heads(model: nn.Module) -> list[str]:
    """Return the paths of what turns the last hidden states into answers: a vocabulary head or a classifier."""
    if not isinstance(model, PreTrainedModel):
        return []
    body = model.base_model
    inside = {id(module) for module in body.modules()} if body is not model else set()
    vocabulary = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_children()
        if any(True for _ in module.parameters())
        and (module is vocabulary or (id(module) not in inside and vocabulary is None))
    ]


def own_parts(model: nn.Module) -> list[str]:
    """Return the paths of what a task has of its own, and an adapter trains as a whole.

    That is a classifier, but not a head that gives words their probability; and every part that the base's files lack.
    """
    is_vocabulary = isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None
    heads = [] if is_vocabulary else output_heads(model)
    # The module around a new layer (a pooler around its dense layer).
    around = [path.rpartition(".")[0] or path for path in new_parts(model) if not is_below(path, heads)]
    return list(dict.fromkeys([*heads, *around]))


def is_below(path: str, places: Sequence[str]) -> bool:
    """Whether `path` is one of `places`, or within one."""
    return any(f"{path}.".startswith(f"{place}.") for place in places)


def short_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Return the shortest list of names that stands for just these paths, as `find_targets` reads such a list."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    meant = {path for path, _ in base_modules(model) if any(names(end, path) for end in ends)}
    return ends if meant == set(paths) else sorted(paths)


def names(target: str, path: str) -> bool:
    """Whether `target` is the path or the end of it, dots and all."""
    return path == target or path.endswith(f".{target}")


def new_parts(model: Any) -> list[str]:
    """Return the paths of the modules of a base that were not in its files, and so hold random numbers."""
    names: tuple[str, ...] = getattr(model, NEW_PARTS, ())
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))
