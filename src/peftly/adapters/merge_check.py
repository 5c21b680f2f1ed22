"""Comparison of each layer with its adapters and after the merge, before any weight of the model is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError, PeftlyError
from peftly.injection import base_modules, evaluation_mode, features, original_forward

__all__ = ["check_merged_layer"]

SAMPLES = 16
"""Inputs of a layer on which the outputs are compared: vectors, or token ids; fewer sounds, images or videos."""

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Maximum difference of the outputs in fp32, relative to the outputs and the effect of the adapters. A wrong merge
differs by about the effect."""

MAX_EFFECT_LOST = 1e-2
"""Maximum difference relative to the effect of the adapters alone, where the effect is above rounding."""

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


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
    with evaluation_mode(layer), _own_copies_of_tensors(layer), _wide_parameters(changes):
        x, outputs = _first_outputs(_sample_inputs(layer), original, adapted)
        for change in changes:
            change.merge_into(layer)
        if x is None:
            return
        outputs += [_tensor(original(x))]
    before, expected, after = outputs
    difference, effect = (float((expected - other).norm()) for other in (after, before))
    size = float(expected.norm()) + effect
    is_lost = difference > MAX_EFFECT_LOST * effect and effect > MAX_RELATIVE_DIFFERENCE * size
    if is_lost or not difference <= MAX_RELATIVE_DIFFERENCE * size:  # true for NaN
        raise MethodError(
            f"{path}, a {type(layer).__name__}, cannot be merged: its outputs would change by {difference / size:.1e} "
            "of their size, and rounding explains less than 1e-4; keep the adapter, or leave the layer out of it"
        )


def _first_outputs(inputs: Iterator[Tensor], *forwards: Callable[..., Any]) -> tuple[Tensor | None, list[Tensor]]:
    """Return the first input that a layer takes, with the output of each forward for it; None if it takes none."""
    for x in inputs:
        try:
            return x, [_tensor(forward(x)) for forward in forwards]
        except PeftlyError:
            raise
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            continue  # of another shape than the layer takes, or an input among several
    return None, []


def _tensor(output: Any) -> Tensor:
    """Return the first tensor of an output: some layers return more, as the scale of quantised numbers."""
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found.float() if found.dtype.itemsize < torch.float32.itemsize else found


def _sample_inputs(layer: Any) -> Iterator[Tensor]:
    """Yield inputs that a layer may take, in fp32 or wider, the likely ones first."""
    weight = layer._parameters.get("weight")
    if weight is None:  # a hook computes it, and the forward alone does not
        return
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Embedding):
        yield torch.randint(layer.num_embeddings, (SAMPLES,), generator=generator).to(weight.device)
        # Tables of positions read whole sequences, some of them the mask; larger numbers would leave the table.
        yield torch.ones(2, SAMPLES // 2, dtype=torch.long, device=weight.device)
        return
    for shape in _input_shapes(layer, weight):
        x = torch.randn(shape, generator=generator)
        yield x.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def _input_shapes(layer: Any, weight: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of inputs that a layer with this weight may take."""
    if isinstance(layer, nn.Linear | Conv1D):
        return [(SAMPLES, features(layer)[1])]
    if isinstance(layer, _CONVOLUTIONS):
        sizes = [
            dilation * (kernel - 1) + 2 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
        return [(2, layer.in_channels, *sizes)]
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) > 1:
        return [(SAMPLES, *layer.normalized_shape)]
    if isinstance(layer, nn.GroupNorm):  # a group of one number has no deviation
        return [(2, len(weight), SAMPLES)]
    if weight.ndim == 1:  # normalisations: of the last dimension, or of the channels of sounds, images and videos
        return [(SAMPLES, len(weight)), *((2, len(weight), *[4] * count) for count in (1, 2, 3))]
    return [(SAMPLES, weight.shape[1])] if weight.ndim == 2 else []


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


@contextmanager
def _wide_parameters(changes: Sequence[Any]) -> Iterator[None]:
    """Compute with the parameters of layer adapters in fp32 or wider: in fp16, rounding exceeds the limit."""
    owners = [module for change in changes for module in change.modules()]
    parameters = [module._parameters for module in owners]
    try:
        for module, own in zip(owners, parameters, strict=True):
            if any(value is not None and value.itemsize < 4 for value in own.values()):
                module._parameters = {name: _wide_copy(value) for name, value in own.items()}
        yield
    finally:
        for module, own in zip(owners, parameters, strict=True):
            module._parameters = own


def _wide_copy(value: Tensor | None) -> Tensor | None:
    if value is None or not value.is_floating_point():
        return value
    wide = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
    return nn.Parameter(wide, requires_grad=False)
