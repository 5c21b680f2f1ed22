"""Comparison of each layer with its adapters and after the merge, before any weight of the model is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection import base_modules, evaluation_mode, features, original_forward

__all__ = ["check_merged_layer"]

SAMPLES = 16
"""Inputs of a layer on which the outputs are compared: vectors, or token ids."""

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Maximum difference of the outputs in fp32, relative to the outputs and the effect of the adapters. A wrong merge
differs by about the effect."""

MAX_EFFECT_LOST = 1e-2
"""Maximum difference relative to the effect of the adapters alone, where the effect is above rounding."""


def check_merged_layer(path: str, layer: Any, changes: Sequence[Any]) -> None:
    """Compare the outputs of a layer with its adapters and after they were merged, in fp32, and restore the layer.

    Args:
        path: path of the layer.
        layer: adapted layer.
        changes: its layer adapters that are to be merged, innermost first.

    Raises:
        MethodError: the outputs differ by more than rounding explains, or the merge fails.
    """
    original = original_forward(layer)
    adapted: Callable[..., Any] = original
    for change in changes:
        adapted = partial(change.run, layer, adapted)
    x = _sample_inputs(layer)
    with evaluation_mode(layer), _own_copies_of_tensors(layer):
        outputs = [] if x is None else [original(x), adapted(x)]
        for change in changes:
            change.merge_into(layer)
        outputs += [] if x is None else [original(x)]
    if not outputs:
        return
    before, expected, after = outputs
    difference, effect = (float((expected - other).norm()) for other in (after, before))
    size = float(expected.norm()) + effect
    is_lost = difference > MAX_EFFECT_LOST * effect and effect > MAX_RELATIVE_DIFFERENCE * size
    if is_lost or not difference <= MAX_RELATIVE_DIFFERENCE * size:  # true for NaN
        raise MethodError(
            f"{path}, a {type(layer).__name__}, cannot be merged: its outputs would change by {difference / size:.1e} "
            "of their size, and rounding explains less than 1e-4; keep the adapter, or leave the layer out of it"
        )


def _sample_inputs(layer: Any) -> Tensor | None:
    """Return inputs of a layer, in fp32 or wider; None for a layer of an unknown kind, which is not compared."""
    generator = torch.Generator().manual_seed(0)
    parameter = next(layer.parameters())
    if "weight" not in layer._parameters:  # a hook computes it, and the forward alone does not
        return None
    if isinstance(layer, nn.Embedding):
        return torch.randint(layer.num_embeddings, (SAMPLES,), generator=generator).to(parameter.device)
    if isinstance(layer, nn.Linear | Conv1D):
        width = features(layer)[1]
    elif type(layer) in (nn.LayerNorm, nn.RMSNorm) and len(layer.normalized_shape) == 1:
        width = layer.normalized_shape[0]
    else:
        return None
    x = torch.randn(SAMPLES, width, generator=generator)
    return x.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))


@contextmanager
def _own_copies_of_tensors(layer: nn.Module) -> Iterator[None]:
    """Give the modules inside `layer` copies of their tensors, parameters in fp32 or wider, while the block runs."""
    owners: list[Any] = [module for _, module in base_modules(layer)]
    tensors = [(module._parameters, module._buffers) for module in owners]
    try:
        for module in owners:
            module._parameters = {name: _wide_copy(value) for name, value in module._parameters.items()}
            module._buffers = {
                name: None if value is None else value.clone() for name, value in module._buffers.items()
            }
        yield
    finally:
        for module, (parameters, buffers) in zip(owners, tensors, strict=True):
            module._parameters, module._buffers = parameters, buffers


def _wide_copy(value: Tensor | None) -> Tensor | None:
    if value is None or not value.is_floating_point():
        return value
    wide = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
    return nn.Parameter(wide, requires_grad=False)
