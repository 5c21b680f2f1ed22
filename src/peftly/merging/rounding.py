"""How much rounding in fp32 is for the outputs of an adapted model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftly.adapters import attached
from peftly.injection import adapted_layers
from peftly.merging.parity import logits_of, relative_difference
from peftly.merging.parity_samples import Sample

__all__ = ["rounding_in_fp32"]

LAST_BIT = 2.0**-23
"""Relative size of the last bit of an fp32 number."""


def rounding_in_fp32(model: Any, samples: Sequence[Sample], reference: Sequence[Tensor]) -> float:
    """Return the relative difference of the logits if the outputs of the adapted layers differ in their last bit.

    Args:
        model: adapted model in fp32.
        samples: texts on which models are compared.
        reference: logits of the model for these texts.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(layer: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + LAST_BIT * noise * output.abs().max()

    layers = {layer for name in attached(model) for _, layer, _ in adapted_layers(model, name)}
    handles = [layer.register_forward_hook(disturb) for layer in layers]
    try:
        return relative_difference(logits_of(model, samples), reference)
    finally:
        for handle in handles:
            handle.remove()
