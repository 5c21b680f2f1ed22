"""Tiny models in 4 and 8 bits, as transformers opens them."""

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
    """Return a tiny model and the folder of its files."""
    folder = TemporaryDirectory()
    model = tiny_model(architecture, dtype, task=task, **dict(sizes))
    model.save_pretrained(folder.name)
    return model, folder


def quantized(architecture: str, kind: str = "nf4", task: str = "causal_lm", dtype=torch.float32, **settings):
    """Return `tiny_model` with quantised linear layers, opened with transformers and not with peftly.

    The settings are those of `Quantization`, or sizes of the model.
    """
    of_quantization = {name: value for name, value in settings.items() if name in Quantization.model_fields}
    sizes = tuple((name, value) for name, value in settings.items() if name not in of_quantization)
    plain, folder = _plain(architecture, task, dtype, sizes)
    quantization = Quantization(kind=kind, **of_quantization)
    with blocks_of_size(quantization.block_size):
        return type(plain).from_pretrained(
            folder.name,
            dtype=dtype,
            quantization_config=quantization.for_transformers(dtype, output_heads(plain)),
            attn_implementation=plain.config._attn_implementation,
        )
