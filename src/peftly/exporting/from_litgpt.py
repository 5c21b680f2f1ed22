"""A LoRA adapter of litgpt, for the models whose layers transformers names as llama's.

litgpt has one layer for queries, keys and values. Its A holds the factors of those that are trained, one below the
other, (rank x trained, in_features), and its B likewise, (their features, rank).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftly.errors import AdapterError
from peftly.exporting.foreign import Foreign, lora_config, read_config, read_pickle

__all__ = ["LITGPT_TENSORS", "read_litgpt"]

LITGPT_TENSORS = "lit_model.pth.lora"

_LAYERS = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_NAME = re.compile(r"(?:transformer\.h\.(\d+)\.)?(.+)\.lora_([AB])")
_LIKE_LLAMA = ("LLaMAMLP", "GemmaMLP")
_FUSED = re.compile(r"phi-?[34]", re.IGNORECASE)
"""Models with the feed-forward layer of llama, whose layers transformers fuses."""


def read_litgpt(folder: Path, base: str | None) -> Foreign:
    """Read an adapter of litgpt.

    Args:
        folder: folder with `lit_model.pth.lora`, `hyperparameters.yaml` and `model_config.yaml`.
        base: name of the base; None: that in the configuration of the model.

    Raises:
        AdapterError: a file is missing, damaged or holds code, or the model has other layers than llama.
    """
    settings, model = read_config(folder / "hyperparameters.yaml"), read_config(folder / "model_config.yaml")
    name = str(model.get("name"))
    if model.get("mlp_class_name") not in _LIKE_LLAMA or _FUSED.search(name):
        raise AdapterError(f"{folder} is for {name}, which does not have the layers of llama: it cannot be converted")
    rank, alpha = int(settings["lora_r"]), float(settings["lora_alpha"])
    tensors = dict(_tensors(read_pickle(folder / LITGPT_TENSORS), settings, model, rank))
    base = base or _hub_id(model)
    return Foreign(
        lora_config(tensors, rank, alpha / rank, base=base, dropout=settings.get("lora_dropout", 0.0)), tensors
    )


def _tensors(
    found: Mapping[str, Tensor], settings: Mapping[str, Any], model: Mapping[str, Any], rank: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the factors of each layer, by their names in a file of PEFT."""
    width, groups = model["head_size"], model["n_query_groups"]
    features = {"query": ("q_proj", width * model["n_head"])}
    features |= {"key": ("k_proj", width * groups), "value": ("v_proj", width * groups)}
    trained = [features[part] for part in features if settings.get(f"lora_{part}", part != "key")]
    for name, tensor in found.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"it has a tensor {name}")
        number, layer, letter = match.groups()
        prefix = "base_model.model." + ("" if number is None else f"model.layers.{number}.")
        if layer in ("attn.qkv", "attn.attn"):
            sizes = [rank] * len(trained) if letter == "A" else [size for _, size in trained]
            for (part, _), factor in zip(trained, torch.split(tensor, sizes), strict=True):
                yield f"{prefix}self_attn.{part}.lora_{letter}.weight", factor
        elif layer == "lm_head" or layer in _LAYERS:
            yield f"{prefix}{_LAYERS.get(layer, layer)}.lora_{letter}.weight", tensor
        else:
            raise ValueError(f"it has a tensor {name}")


def _hub_id(model: Mapping[str, Any]) -> str | None:
    source = model.get("hf_config")
    return (
        f"{source['org']}/{source['name']}"
        if isinstance(source, Mapping) and {"org", "name"} <= source.keys()
        else None
    )
