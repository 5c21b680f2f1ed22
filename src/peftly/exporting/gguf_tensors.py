"""Tensors in GGUF files: their names, the order of their rows, and their dtypes."""

from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "PERMUTED", "add_tensor", "interleaved", "tensor_names"]

DTYPES = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
"""Dtypes of matrices, and GGUF's names for files of these dtypes. Vectors are always in f32."""

PERMUTED = ("llama", "granite", "smollm3")
"""Architectures whose query and key rows GGUF stores interleaved: the two halves of each head alternate."""

_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Entries of a config with the number of heads, by the projections whose rows are interleaved."""


def tensor_names(architecture: str, num_layers: int) -> Any:
    """Return the map of parameter names to the names of an architecture in GGUF."""
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(number, num_layers)


def interleaved(tensor: "Tensor", layer: str, config: Any) -> "Tensor":
    """Return a tensor of an architecture in `PERMUTED` with the rows in the order of GGUF.

    Args:
        tensor: weight or bias of a layer, or the factor B of its update, (out_features, ...).
        layer: name of the layer in its parent. Only queries and keys change.
        config: config of the model.
    """
    if layer not in _HEADS:
        return tensor
    heads = getattr(config, _HEADS[layer])
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def add_tensor(writer: Any, name: str, tensor: "Tensor", dtype: str) -> None:
    """Add a tensor: vectors in f32, matrices in `dtype`, or in f16 where q8_0's blocks do not divide the row length.

    Raises:
        BaseModelError: the tensor has values that f16 cannot hold.
    """
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, quantize

    values = tensor.detach().float().cpu().numpy()
    kind = GGMLQuantizationType[dtype.upper() if tensor.ndim > 1 else "F32"]
    with np.errstate(over="ignore"):
        try:
            packed = quantize(values, kind)
        except QuantError:
            kind = GGMLQuantizationType.F16
            packed = quantize(values, kind)
    if kind == GGMLQuantizationType.F16 and not np.isfinite(packed).all():
        raise BaseModelError(f"{name} has values that f16 cannot hold: choose dtype bf16 or f32")
    writer.add_tensor(name, packed, raw_dtype=kind)
