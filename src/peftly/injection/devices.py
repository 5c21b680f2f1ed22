"""Where a module computes, and its weights where accelerate keeps them elsewhere (in memory, on disk) between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

__all__ = ["bias_of", "device_of", "in_memory"]


def device_of(module: nn.Module) -> torch.device:
    """Return where a module with parameters computes, which is where what is added to it belongs."""
    for part in module.modules():
        place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(module.parameters()).device


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Have the weights of a module, and of all below it, where they compute."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def bias_of(layer: Any) -> Tensor:
    """Return the bias of a layer, from wherever it is kept."""
    with in_memory(layer):
        bias: Tensor = layer.bias
        return bias
