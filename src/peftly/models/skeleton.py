"""A base as a model without weights, made from its config alone, for counting parameters and memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftly.injection import is_within, output_heads
from peftly.kernels import import_bitsandbytes
from peftly.models.base_spec import BaseSpec, one_line_errors
from peftly.models.checks import check_gguf, check_quantization
from peftly.models.gguf import gguf_config
from peftly.models.heads import Head
from peftly.models.opening import model_class_for
from peftly.models.quantization import Quantization
from peftly.utils import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["config_without_weights", "open_skeleton"]

_CODES_4BIT, _CODES_8BIT, _SCALES_OF_SCALE = 16, 256, 256
"""Values of a 4-bit and of an 8-bit code, and 4-bit scales that share a scale where scales are quantised, too."""


def config_without_weights(base: BaseSpec) -> PreTrainedConfig:
    """Return a copy of the config of a base; its folder may lack weights, and of the Hub no other file is fetched.

    Raises:
        BaseModelError: there is no config, or it cannot be read.
    """
    import transformers

    with quiet(), one_line_errors(base):
        if base.kind == "gguf":
            return gguf_config(Path(base.source))
        base.check_config_file()
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(base.source, **base.loading_settings)
        return config


def open_skeleton(
    base: BaseSpec, *, dtype: torch.dtype, head: Head | None = None, quantization: Quantization | None = None
) -> PreTrainedModel:
    """Return the model that `load_base` would return, on torch's device `meta`: no weight is read or drawn.

    Args:
        base: the base.
        dtype: dtype of the weights.
        head: head of the task; None: the head that the config names.
        quantization: quantization of the linear layers.

    Raises:
        BaseModelError: the config cannot be read, or the base cannot be opened like this.
    """
    head = head or Head()
    config = config_without_weights(base)
    if base.kind == "gguf":
        check_gguf(base.name, quantization, head.task)
    else:
        check_quantization(base.name, config, quantization)
    model_class = model_class_for(base.name, config, head)
    head.set_labels(config)
    with quiet(), one_line_errors(base), torch.device("meta"):
        factory = model_class._from_config if hasattr(model_class, "_from_config") else model_class.from_config
        model: Any = factory(copy.deepcopy(config), dtype=dtype)
        if quantization is not None:
            _quantize(model, quantization, dtype)
    model.name_or_path = base.name
    if head.labels:
        text_config = model.config.get_text_config()
        text_config.pad_token_id = text_config.pad_token_id or 0
    skeleton: PreTrainedModel = model.eval()
    return skeleton


def _quantize(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    """Replace linear layers by quantised ones without data, in place; heads stay as they are."""
    heads = output_heads(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not is_within(path, heads):
            quantized = _int8_layer(layer) if quantization.kind == "int8" else _layer_4bit(layer, quantization, dtype)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, quantized)


def _int8_layer(layer: nn.Linear) -> nn.Module:
    modules = import_bitsandbytes().nn
    quantized: nn.Module = modules.Linear8bitLt(
        layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False
    )
    codes = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8)
    scales = torch.empty(layer.out_features)
    quantized.weight = modules.Int8Params(codes, requires_grad=False, has_fp16_weights=False, SCB=scales)
    quantized.bias = layer.bias
    return quantized


def _layer_4bit(layer: nn.Linear, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    bitsandbytes = import_bitsandbytes()
    count, shape = layer.weight.numel(), layer.weight.shape
    quantized: nn.Module = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=getattr(torch, quantization.compute_dtype) if quantization.compute_dtype else dtype,
        quant_type=quantization.kind,
    )
    scales = -(-count // quantization.block_size)
    state: dict[str, Any] = {"absmax": torch.empty(scales)}
    if quantization.double:
        of_scales = bitsandbytes.functional.QuantState(
            absmax=torch.empty(-(-scales // _SCALES_OF_SCALE)),
            code=torch.empty(_CODES_8BIT),
            blocksize=_SCALES_OF_SCALE,
            dtype=torch.float32,
        )
        state = {
            "absmax": torch.empty(scales, dtype=torch.uint8),
            "offset": torch.empty(()),
            "state2": of_scales,
        }
    state = bitsandbytes.functional.QuantState(
        shape=shape,
        dtype=dtype,
        blocksize=quantization.block_size,
        quant_type=quantization.kind,
        code=torch.empty(_CODES_4BIT),
        **state,
    )
    quantized.weight = bitsandbytes.nn.Params4bit(
        torch.empty(-(-count // 2), 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=quantization.block_size,
        compress_statistics=quantization.double,
        quant_type=quantization.kind,
        bnb_quantized=True,
    )
    quantized.bias = layer.bias
    return quantized
