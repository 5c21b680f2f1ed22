"""PEFT's helpers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from peftly.adapters import attached, check_weightable
from peftly.errors import MethodError
from peftly.injection import adapted_layers, invalidate_cached_tensors
from peftly.peft.config import PeftConfig

__all__ = ["check_if_peft_model", "rescale_adapter_scale"]


def check_if_peft_model(model_name_or_path: str) -> bool:
    """Return whether a folder or a repository on the Hub holds an adapter whose method `peftly.peft` has."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (OSError, TypeError, ValueError):  # no file, no entry peft_type, another method
        return False
    return True


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiply the updates of all LoRA adapters of a model by a number inside the block.

    Args:
        model: a model with adapters.
        multiplier: the number.

    Raises:
        TypeError: the multiplier is no number.
        MethodError: the model has an adapter that does more than add to outputs.
    """
    if not isinstance(multiplier, int | float):
        raise TypeError(f"multiplier is a number, got {type(multiplier).__name__}")
    if not attached(model):
        raise MethodError("scaling is only supported for models with LoRA adapters; call get_peft_model first")
    check_weightable(model, dict.fromkeys(attached(model), float(multiplier)))
    changes: list[Any] = [change for name in attached(model) for _, _, change in adapted_layers(model, name)]
    scalings = [change.scaling for change in changes]
    try:
        for change in changes:
            change.scaling *= multiplier
        invalidate_cached_tensors()
        yield
    finally:
        for change, scaling in zip(changes, scalings, strict=True):
            change.scaling = scaling
        invalidate_cached_tensors()
