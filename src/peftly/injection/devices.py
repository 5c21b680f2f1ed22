"""Device of a module, and access to weights that accelerate keeps offloaded (in memory, on disk) between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from peftly.injection.layers import base_modules

__all__ = ["bias_of", "device_of", "in_memory"]


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module with parameters computes, to which the parameters of its adapters belong."""
    for _, submodule in base_modules(module):
        device = getattr(getattr(submodule, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Load the offloaded weights of a module and of its submodules to their device while the block runs."""
    with ExitStack() as stack:
        for _, submodule in base_modules(module):
            tensors = chain(submodule.parameters(recurse=False), submodule.buffers(recurse=False))
            if any(tensor.is_meta for tensor in tensors):  # not in a call of the module, whose end offloads it again
                stack.enter_context(align_module_device(submodule))
        yield


def bias_of(layer: Any) -> Tensor:
    """Return the bias of a layer, which may be offloaded."""
    with in_memory(layer):
        bias: Tensor = layer.bias
        return bias
