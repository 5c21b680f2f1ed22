"""The LoRA factors in the file of an adapter: their layers, ranks and scalings, and the tensors that are no factors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from peftly.exporting.saved_adapter import SavedAdapter
from peftly.injection import by_pattern
from peftly.methods import lora_scaling

__all__ = ["is_base_copy", "layer_and_factor", "layer_scalings", "lora_factors", "other_tensors"]

_FACTOR = re.compile(r"base_model\.model\.(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
_BASE_COPY = re.compile(r".*\.base_layer\.weight")


def lora_factors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file without copies of the base's embeddings, which PEFT stores beside the factors."""
    return {name: tensor for name, tensor in tensors.items() if not is_base_copy(name)}


def is_base_copy(name: str) -> bool:
    """Return whether a tensor is a copy of an embedding of the base."""
    return _BASE_COPY.fullmatch(name) is not None


def layer_and_factor(name: str) -> tuple[str, str]:
    """Return the module path of a factor's layer, and the letter of the factor, A or B."""
    match = _FACTOR.fullmatch(name)
    assert match is not None
    return match[1], match[2] or match[3]


def layer_scalings(peft_config: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return the factor of the update of each layer, by the module path of the layer.

    Args:
        peft_config: content of `adapter_config.json`.
        names: names of the factors in the file.
    """
    paths = {layer_and_factor(name)[0] for name in names}
    ranks = by_pattern(peft_config.get("rank_pattern") or {}, paths, peft_config["r"], "rank_pattern")
    alphas = by_pattern(peft_config.get("alpha_pattern") or {}, paths, peft_config["lora_alpha"], "alpha_pattern")
    rslora = bool(peft_config.get("use_rslora"))
    return {path: lora_scaling(alphas[path], ranks[path], rslora=rslora) for path in paths}


def other_tensors(saved: SavedAdapter) -> str | None:
    """Return a clause on the tensors of an adapter that are no LoRA factors; None if there are none."""
    others = [name for name in saved.tensors if not (_FACTOR.fullmatch(name) or is_base_copy(name))]
    if not others:
        return None
    modules = saved.peft_config.get("modules_to_save") or ()
    copies = [module for module in modules if any(module in name for name in others)]
    if copies:
        return f"it holds trained copies of modules (modules_to_save: {', '.join(copies)})"
    if all(name.endswith(".bias") for name in others):
        return f"it holds trained biases (bias: {saved.peft_config.get('bias')})"
    return f"it holds {others[0]}, which is not a LoRA factor"
