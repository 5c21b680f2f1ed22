"""When autograd functions give way to plain operations, which torch can trace, transform and derive twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_transformed", "plain_gradients"]


def is_transformed() -> bool:
    """Return whether torch.compile or torch.export traces a call, or torch.func or forward-mode AD transforms it."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0  # there is no public function
    )


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `function(*inputs)` with a graph of their own, for a backward pass that is derived again.

    Args:
        function: composition of operations of torch.
        inputs: tensors, or None.
        needed: whether the gradient of each input is needed.
        grad: gradient of the output.
    """
    with torch.enable_grad():
        output = function(*inputs)
    wanted = [tensor for tensor, is_needed in zip(inputs, needed, strict=True) if is_needed and tensor is not None]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)
