"""Losses that are scaled up before the backward pass, where fp16 would round gradients to 0 (arXiv:1710.03740)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["LossScale"]

FIRST, LARGEST = 2.0**16, 2.0**24
GROWS_AFTER = 1000
"""Steps in a row without an overflow."""


class LossScale:
    """A power of 2, so that scaling rounds nothing: halved where gradients overflow, doubled where they long have not.

    Attributes:
        factor: what losses are multiplied by.
        steps: since it changed.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """Scale the losses of a model that computes in `dtype`, if that is fp16."""
        self.is_on = dtype == torch.float16
        self.factor = FIRST if self.is_on else 1.0
        self.steps = 0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients of a step; False: they have overflowed, and the step is to be taken again.

        The factor is smaller then. At 1 there is nothing left to try, and gradients are what they are.
        """
        if not self.is_on:
            return True
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.factor > 1 and not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self._change(self.factor / 2)
            return False
        torch._foreach_div_(gradients, self.factor)
        self.steps += 1
        if self.steps == GROWS_AFTER:
            self._change(min(self.factor * 2, LARGEST))
        return True

    def state(self) -> dict[str, float]:
        """Return what `restore` goes on from."""
        return {"factor": self.factor, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of another of the same dtype."""
        self.factor, self.steps = state["factor"], state["steps"]

    def _change(self, factor: float) -> None:
        self.factor, self.steps = factor, 0
