"""Tiny bases in 4 and 8 bits, as transformers opens them."""

from functools import cache
from tempfile import TemporaryDirectory

import torch
from tiny import tiny_model

from peftly.injection.targets import output_heads
from peftly.kernels.bitsandbytes import blocks_of_size, import_bitsandbytes
from peftly.models.quantization import Quantization

import_bitsandbytes()


@cache
def _plain(architecture: str, task: str, dtype: torch.dtype, sizes: tuple[tuple[str, int], ...]):
    """A tiny model, and the folder that it is in."""
    folder = TemporaryDirectory()
    model = tiny_model(architecture, dtype, task=task, **dict(sizes))
    model.save_pretrained(folder.name)
    return model, folder


def quantized(architecture: str, kind: str = "nf4", task: str = "causal_lm", dtype=torch.float32, **settings):
    """`tiny_model` with quantised linear layers, as somebody opens it who does not know of peftly.

    The settings are of `Quantization`, or sizes of the model.
    """
    chosen = {name: value for name, value in settings.items() if name in Quantization.model_fields}
    sizes = tuple((name, value) for name, value in settings.items() if name not in chosen)
    plain, folder = _plain(architecture, task, dtype, sizes)
    wanted = Quantization(kind=kind, **chosen)
    with blocks_of_size(wanted.block_size):
        return type(plain).from_pretrained(
            folder.name,
            dtype=dtype,
            quantization_config=wanted.for_transformers(dtype, output_heads(plain)),
            attn_implementation=plain.config._attn_implementation,
        )
