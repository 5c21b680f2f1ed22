"""Tiny bases in 4 and 8 bits, as transformers opens them."""

from functools import cache
from tempfile import TemporaryDirectory

import torch
from tiny import tiny_model

from peftly.methods._quantized import blocks_of_size, import_bitsandbytes
from peftly.methods._targets import output_heads
from peftly.quantization import Quantization

import_bitsandbytes()


@cache
def _files(architecture: str, task: str, dtype: torch.dtype) -> TemporaryDirectory:
    folder = TemporaryDirectory()
    tiny_model(architecture, dtype, task=task).save_pretrained(folder.name)
    return folder


def quantized(architecture: str, kind: str = "nf4", task: str = "causal_lm", dtype=torch.float32, **settings):
    """`tiny_model` with quantised linear layers, as somebody opens it who does not know of peftly."""
    plain = tiny_model(architecture, dtype, task=task)
    wanted = Quantization(kind=kind, **settings)
    with blocks_of_size(wanted.block_size):
        return type(plain).from_pretrained(
            _files(architecture, task, dtype).name,
            dtype=dtype,
            quantization_config=wanted.for_transformers(dtype, output_heads(plain)),
            attn_implementation=plain.config._attn_implementation,
        )
