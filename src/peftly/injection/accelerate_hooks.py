"""Adapters inside the hooks of accelerate, which place and offload the weights of a layer around its forward.

accelerate wraps the forward of a layer and keeps it in the attribute `_old_forward`. The adapters of a layer belong
there: its weights are loaded when they run, and a hook may be added or removed at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["NeverOffloaded", "forward_attribute", "restore_forward"]


def forward_attribute(layer: nn.Module) -> str:
    """Return the attribute for the forward of a layer: accelerate's hooks call the one in `_old_forward`."""
    return "_old_forward" if "_old_forward" in vars(layer) else "forward"


def restore_forward(layer: nn.Module, replaced: Callable[..., Any] | None) -> None:
    """Restore the forward of a layer that had the attribute `replaced`; None: it had that of its class."""
    attribute = forward_attribute(layer)
    del vars(layer)[attribute]
    if replaced is None and attribute != "forward":  # a hook of accelerate was added since, which needs a forward
        replaced = type(layer).forward.__get__(layer)
    if replaced is not None:
        vars(layer)[attribute] = replaced


class NeverOffloaded:
    """Descriptor that undoes accelerate's hook on the part of an adapter, so that the part is never offloaded.

    accelerate loads the weights of a module in calls of the module, and parts are not called.
    """

    def __get__(self, part: nn.Module | None, owner: type[nn.Module]) -> Any:
        raise AttributeError("_hf_hook")

    def __set__(self, part: nn.Module, hook: Any) -> None:
        hook.detach_hook(part)
        for tensor in part.parameters(recurse=False):
            tensor.data = tensor.detach().clone()  # the tensor may be mapped from a file of accelerate
        device = getattr(hook, "execution_device", None)
        if device is not None:
            part.to(device)
