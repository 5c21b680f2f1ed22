"""How a base's linear layers are kept in fewer bits, checked without importing torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from peftly.errors import BaseModelError
from peftly.injection import make_plain
from peftly.kernels import has_8_bits, is_bitsandbytes_layer, is_quantized, quant_state

if TYPE_CHECKING:
    import torch

__all__ = ["Quantization", "as_quantization", "finish", "quantization_of", "read_quantization"]

Kind = Literal["nf4", "fp4", "int8"]


class Quantization(BaseModel):
    """How the weights of linear layers are kept; embeddings, norms and heads stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Kind
    """4-bit codes for normally distributed numbers (arXiv:2305.14314), 4-bit floats, or 8-bit integers a row
    (arXiv:2208.07339)."""

    double: bool = True
    """Keep the scales of 4-bit blocks in 8 bits as well: 4.127 bits a weight instead of 4.5."""

    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """How many 4-bit weights share a scale."""

    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What weights are unpacked to and multiplied in; None: the base's dtype."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What weights are rounded to before they are quantised; None: the base's dtype."""

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        of_blocks = ("double", "block_size", "compute_dtype")
        chosen = [name for name in of_blocks if getattr(self, name) != type(self).model_fields[name].default]
        if self.kind == "int8" and chosen:
            raise ValueError(f"int8 has a scale for every row, and no {chosen[0]}; leave it out")
        return self

    def for_transformers(self, dtype: "torch.dtype", heads: Sequence[str]) -> Any:
        """Return what `from_pretrained` takes, but for the block size.

        Args:
            dtype: that products are computed in, unless the settings say it.
            heads: the paths of layers that stay as they are.
        """
        import torch
        from transformers import BitsAndBytesConfig

        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(heads))
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
            llm_int8_skip_modules=list(heads),  # of 4 bits as well
        )


def as_quantization(value: Quantization | str | None) -> Quantization | None:
    """Return the settings that a name stands for.

    Raises:
        BaseModelError: there is no such quantisation.
    """
    if isinstance(value, Quantization) or value in (None, "none"):
        return value if isinstance(value, Quantization) else None
    if value not in get_args(Kind):
        raise BaseModelError(f"quantization={value!r} is not one of {', '.join(get_args(Kind))}, none")
    return Quantization.model_validate({"kind": value})


def read_quantization(value: object) -> object:
    """Turn `nf4` into `{kind: nf4}`, and `none` into None."""
    if isinstance(value, str):
        return None if value == "none" else {"kind": value}
    return value


REMEMBERED = "_peftly_quantization"
"""On a model that was opened quantised: how."""


def quantization_of(model: Any) -> Quantization | None:
    """Return how a model was quantised when it was opened; None if it was not, or if its files have it so already."""
    known: Quantization | None = getattr(model, REMEMBERED, None)
    if known is not None:
        return known
    layer: Any = next((layer for layer in model.modules() if is_quantized(layer)), None)
    if layer is None or getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        return None
    if has_8_bits(layer):
        return Quantization.model_validate({"kind": "int8", "dtype": _name(model.dtype)})
    state = quant_state(layer)
    found = {"kind": state.quant_type, "double": state.nested, "block_size": state.blocksize}
    return Quantization.model_validate({**found, "dtype": _name(state.dtype)})


def finish(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Let a model that has just been quantised compute in `dtype`, and remember how it was made.

    What was in no file, and so was drawn at random, has not been quantised: it becomes plain again.
    """
    for layer in [layer for layer in model.modules() if is_bitsandbytes_layer(layer) and not is_quantized(layer)]:
        make_plain(layer, layer.weight.data)
    setattr(model, REMEMBERED, quantization.model_copy(update={"dtype": quantization.dtype or _name(model.dtype)}))
    if model.dtype != dtype:
        for parameter in model.parameters():
            if parameter.is_floating_point() and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
