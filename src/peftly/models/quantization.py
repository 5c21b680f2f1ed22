"""Quantization of a base's linear layers, as a setting and as a property of a model."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import model_validator
from torch import nn

from peftly.errors import BaseModelError
from peftly.injection import QUANTIZATION, make_plain, quantization_settings
from peftly.kernels import is_bitsandbytes_layer, is_quantized
from peftly.settings import Settings

__all__ = [
    "Quantization",
    "QuantizationName",
    "as_quantization",
    "finish_quantization",
    "quantization_of",
    "read_quantization",
]

Kind = Literal["nf4", "fp4", "int8"]

QuantizationName = Literal["nf4", "fp4", "int8", "none"]
"""Short form of the setting in a configuration."""


class Quantization(Settings):
    """Quantization of the weights of linear layers; embeddings, norms and heads are not quantized."""

    section: ClassVar[str] = "quantization"

    kind: Kind
    """Kind: 4-bit codes for normally distributed weights (nf4, arXiv:2305.14314), 4-bit floats (fp4), or 8-bit integers
    with a scale for each row of the weight (int8, arXiv:2208.07339)."""

    double: bool = True
    """Quantize the scales of 4-bit blocks to 8 bits, too: 4.127 bits per weight instead of 4.5."""

    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Number of 4-bit weights that share a scale."""

    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype that weights are dequantized to for a product; None: the base's dtype."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype that weights are rounded to before they are quantized; None: the base's dtype."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        of_blocks = ("double", "block_size", "compute_dtype")
        chosen = [name for name in of_blocks if getattr(self, name) != type(self).model_fields[name].default]
        if self.kind == "int8" and chosen:
            raise ValueError(f"int8 has a scale for every row, and no {chosen[0]}; leave it out")
        return self

    def for_transformers(self, dtype: torch.dtype, heads: Sequence[str]) -> Any:
        """Return the argument of `from_pretrained`; transformers has no setting for the block size.

        Args:
            dtype: dtype of products where `compute_dtype` is None.
            heads: paths of layers that are not quantized.
        """
        from transformers import BitsAndBytesConfig

        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(heads))
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
            llm_int8_skip_modules=list(heads),  # for 4 bits, too, in spite of its name
        )


def as_quantization(value: Quantization | str | None) -> Quantization | None:
    """Return the settings of a named quantization; None for None and "none".

    Raises:
        BaseModelError: the name is unknown.
    """
    if isinstance(value, Quantization) or value in (None, "none"):
        return value if isinstance(value, Quantization) else None
    if value not in get_args(Kind):
        raise BaseModelError(f"quantization={value!r} is not one of {', '.join(get_args(Kind))}, none")
    return Quantization.model_validate({"kind": value})


def read_quantization(value: object) -> object:
    """Return the settings in a configuration file in their long form: `{kind: nf4}` for `nf4`, None for `none`."""
    if isinstance(value, str):
        return None if value == "none" else {"kind": value}
    return value


def quantization_of(model: Any) -> Quantization | None:
    """Return the quantization of a model, dequantised since or not; None if there is none, as for quantized files."""
    known = getattr(model, QUANTIZATION, None) or quantization_settings(model)
    return None if known is None else Quantization.model_validate(known)


def finish_quantization(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Set the compute dtype of a model that has just been quantized, and store its quantization on it, in place.

    Weights that no file has are drawn at random and not quantized: their layers become ordinary linear layers again.
    """
    for layer in [layer for layer in model.modules() if is_bitsandbytes_layer(layer) and not is_quantized(layer)]:
        make_plain(layer, layer.weight.data)
    setattr(model, QUANTIZATION, quantization.model_copy(update={"dtype": quantization.dtype or _name(model.dtype)}))
    if model.dtype != dtype:
        for parameter in model.parameters():
            if parameter.is_floating_point() and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
