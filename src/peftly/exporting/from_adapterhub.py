"""An adapter of the library `adapters` for BERT and its kin: LoRA, or bottlenecks as Houlsby et al. place them.

With `original_ln_before: false` a bottleneck follows the projection behind attention and feed-forward layer, before the
residual connection and the normalisation: `houlsby` here. Other placements read or add states that are none here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftly.adapters import CONFIG
from peftly.errors import AdapterError
from peftly.exporting.foreign import Foreign, lora_config, read_config, read_pickle, read_safetensors

__all__ = ["ADAPTERHUB_TENSORS", "read_adapterhub"]

ADAPTERHUB_TENSORS = ("adapter.safetensors", "pytorch_adapter.bin")

_LORA = re.compile(r"(.+)\.loras\.[^.]+\.lora_([AB])")
_BOTTLENECK = re.compile(r"(.+\.output)\.adapters\.[^.]+\.adapter_(down\.0|up)\.(weight|bias)")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh"}
_PLAIN = {
    "original_ln_before": False,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "use_gating": False,
    "phm_layer": False,
    "inv_adapter": None,
    "cross_adapter": False,
    "mh_adapter": True,
    "output_adapter": True,
}
"""Settings of a bottleneck that can be converted, each with the value that it has to have."""


def read_adapterhub(folder: Path, base: str | None) -> Foreign:
    """Read an adapter of the library `adapters`.

    Args:
        folder: folder with `adapter_config.json` and `adapter.safetensors` or `pytorch_adapter.bin`.
        base: name of the base; None: that in the file.

    Raises:
        AdapterError: a file is missing, damaged or holds code, or the adapter is one that cannot be converted.
    """
    content = read_config(folder / CONFIG)
    settings = content.get("config")
    if not isinstance(settings, Mapping):
        raise AdapterError(f"{folder / CONFIG} has no config, so it is not an adapter of the library adapters")
    file = next(folder / name for name in ADAPTERHUB_TENSORS if (folder / name).is_file())
    found = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
    base = base or content.get("model_name")
    notes = (
        ("its head is not converted: train one, or use it as a body",) if (folder / "head_config.json").exists() else ()
    )
    if settings.get("architecture") == "lora":
        return _lora(file, settings, found, base, notes)
    if settings.get("architecture") is None and "mh_adapter" in settings:
        return _bottlenecks(file, settings, found, base, notes)
    raise AdapterError(
        f"{folder} has the architecture {settings.get('architecture')!r}; of the library adapters peftly converts LoRA "
        "and bottlenecks"
    )


def _lora(
    file: Path, settings: Mapping[str, Any], found: Mapping[str, Tensor], base: str | None, notes: tuple[str, ...]
) -> Foreign:
    if settings.get("composition_mode", "add") != "add" or settings.get("use_gating"):
        raise AdapterError(f"{file} scales or gates outputs, which LoRA does not; it cannot be converted")
    tensors = {}
    for name, tensor in found.items():
        match = _LORA.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise AdapterError(f"{file} has a tensor {name}, which is no factor of LoRA")
        tensors[f"base_model.model.{match[1]}.lora_{match[2]}.weight"] = tensor
    rank, alpha = int(settings["r"]), float(settings["alpha"])
    config = lora_config(tensors, rank, alpha / rank, base=base, dropout=settings.get("dropout", 0.0))
    return Foreign(config | {"task_type": None}, tensors, notes)


def _bottlenecks(
    file: Path, settings: Mapping[str, Any], found: Mapping[str, Tensor], base: str | None, notes: tuple[str, ...]
) -> Foreign:
    odd = [f"{key}: {settings[key]}" for key, value in _PLAIN.items() if settings.get(key, value) != value]
    activation, scaling = _ACTIVATIONS.get(str(settings.get("non_linearity")).lower()), settings.get("scaling", 1.0)
    if odd or activation is None or not isinstance(scaling, int | float) or settings.get("leave_out"):
        reason = odd or [f"non_linearity: {settings.get('non_linearity')}", f"scaling: {scaling}"]
        raise AdapterError(
            f"{file} is a bottleneck adapter with {', '.join(reason)}, which peftly does not have; it converts those "
            "of Houlsby et al. (double_seq_bn)"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        match = _BOTTLENECK.fullmatch(name)
        if match is None:
            raise AdapterError(f"{file} has a tensor {name}, which is no part of a bottleneck of BERT")
        part = match[2].removesuffix(".0") + ("_bias" if match[3] == "bias" else "")
        tensors[f"base_model.model.{match[1]}.dense.adapter_{part}"] = tensor
    width = next(len(tensor) for name, tensor in tensors.items() if name.endswith("adapter_down"))
    ours = {
        "name": "adapter",
        "placement": "houlsby",
        "bottleneck_dim": width,
        "activation": activation,
        "scaling": float(scaling),
        "dropout": float(settings.get("dropout", 0.0)),
        "layer_norms": False,
        "modules_to_save": [],
    }
    config = {"base_model_name_or_path": base, "inference_mode": True, "peft_type": "PEFTLY_ADAPTER", "settings": ours}
    return Foreign(config, tensors, notes)
