"""An adapter of mlx-lm: `y = x Wᵀ + s (x A) B`, with A (in_features, rank) and B (rank, out_features).

The formula of DoRA is PEFT's, with the magnitudes in `m`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftly.adapters import CONFIG
from peftly.errors import AdapterError
from peftly.exporting.foreign import Foreign, lora_config, read_config, read_safetensors

__all__ = ["MLX_TENSORS", "read_mlx"]

MLX_TENSORS = "adapters.safetensors"

_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")


def read_mlx(folder: Path, base: str | None) -> Foreign:
    """Read an adapter of mlx-lm.

    Args:
        folder: folder with `adapters.safetensors` and `adapter_config.json`.
        base: name of the base; None: that in the file.

    Raises:
        AdapterError: a file is missing or damaged, or the adapter is one that PEFT has no form for.
    """
    config = read_config(folder / CONFIG)
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(parameters, Mapping):
        raise AdapterError(
            f"{folder} is of fine_tune_type {kind!r}; adapters of mlx-lm that peftly reads are lora, dora"
        )
    tensors = {}
    for name, tensor in read_safetensors(folder / MLX_TENSORS).items():
        path, _, part = name.rpartition(".")
        if part not in _NAMES or path.rpartition(".")[2] in _EMBEDDINGS or tensor.ndim != 2 - (part == "m"):
            raise AdapterError(
                f"{folder / MLX_TENSORS} has {name} {tuple(tensor.shape)}: factors of linear layers can be converted, "
                "not those of experts or embeddings, nor whole weights"
            )
        tensors[f"base_model.model.{path}.{_NAMES[part]}"] = tensor if part == "m" else tensor.T
    rank = next(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
    scaling = _scaling(folder, config, parameters, rank)
    base = base or config.get("model")
    peft = lora_config(tensors, rank, scaling, base=base, dropout=parameters.get("dropout", 0.0), dora=kind == "dora")
    notes = () if not base or base != config.get("model") else (f"its base is {base}: with --base another copy of it",)
    return Foreign(peft, tensors, notes)


def _scaling(folder: Path, config: Mapping[str, Any], parameters: Mapping[str, Any], rank: int) -> float:
    """Return the factor of the update. Versions that name the layers `lora_layers` multiply it by alpha / rank."""
    scale, alpha = parameters.get("scale"), parameters.get("alpha")
    if not isinstance(scale, int | float):
        raise AdapterError(f"{folder / CONFIG}: lora_parameters has no scale")
    if alpha is None or alpha == rank:
        return float(scale)
    if "lora_layers" not in config:
        raise AdapterError(
            f"{folder / CONFIG}: lora_parameters has scale and alpha, which versions of mlx-lm read differently; "
            "delete alpha, and first multiply scale by alpha / rank if the version of the training did"
        )
    return float(scale * alpha / rank)
