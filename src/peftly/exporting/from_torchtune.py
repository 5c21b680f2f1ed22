"""A LoRA adapter of torchtune in its own format, for llama and mistral.

torchtune rotates neighbouring features of queries and keys, and transformers the two halves of a head: the rows of
these layers are in another order.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from peftly.adapters import CONFIG
from peftly.errors import AdapterError
from peftly.exporting.foreign import Foreign, lora_config, read_config, read_pickle
from peftly.models import base_config

__all__ = ["read_torchtune"]

_LAYERS = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(.+)\.lora_([ab])\.weight")
_MODELS = ("llama", "mistral")


def read_torchtune(folder: Path, base: str | None) -> Foreign:
    """Read an adapter of torchtune.

    Args:
        folder: folder with `adapter_config.json` and one file `adapter_*.pt`.
        base: name of the base, whose number of heads is read; None: that in the file.

    Raises:
        AdapterError: a file is missing, damaged or holds code, the base is not known, or of another model.
        BaseModelError: the base cannot be found.
    """
    config = read_config(folder / CONFIG)
    base = base or config.get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{folder} is an adapter of torchtune that names no base: give it with --base, or base=")
    model: Any = base_config(base)
    if getattr(model, "model_type", None) not in _MODELS:
        raise AdapterError(
            f"{folder} is an adapter of torchtune; peftly converts those for {' and '.join(_MODELS)}, and {base} is "
            f"{getattr(model, 'model_type', 'a GGUF file')}: convert it with torchtune's save_adapter_weights_only"
        )
    heads = {"q_proj": model.num_attention_heads, "k_proj": model.num_key_value_heads}
    path = max(folder.glob("adapter_*.pt"), key=lambda file: (len(file.name), file.name))  # of the last epoch
    tensors = {}
    for name, tensor in read_pickle(path).items():
        match = _NAME.fullmatch(name)
        if match is None or not (match[2] in _LAYERS or match[2] == "output"):
            raise AdapterError(f"{path} has a tensor {name}, which is no factor of LoRA that peftly knows")
        layer = _LAYERS.get(match[2], "lm_head")
        prefix = "base_model.model." + ("" if match[1] is None else f"model.layers.{match[1]}.")
        part = layer.rpartition(".")[2]
        if match[3] == "b" and part in heads:
            tensor = _in_halves(tensor, heads[part])
        tensors[f"{prefix}{layer}.lora_{match[3].upper()}.weight"] = tensor
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    dropout = config.get("lora_dropout", 0.0)
    return Foreign(lora_config(tensors, rank, alpha / rank, base=base, dropout=dropout), tensors)


def _in_halves(tensor: Tensor, heads: int) -> Tensor:
    """Return the rows of each head in the order of transformers: the even ones, then the odd ones."""
    return tensor.view(heads, -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
