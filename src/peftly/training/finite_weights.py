"""Copies of the trained weights, to go back to after a loss or a gradient that is not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftly.injection import invalidate_cached_tensors

__all__ = ["LastFiniteWeights", "assign", "copies"]

LAST_FINITE_STEPS = 20
"""Largest number of steps between two copies."""

LAST_FINITE_SHARE = 10
"""The number of steps between two copies is at most the number of steps so far, divided by this."""


class LastFiniteWeights:
    """A copy of weights that gave a finite loss and a finite gradient norm.

    After a few steps the copy is no longer taken at every step: a failure loses at most a tenth of the steps so far, at
    most `LAST_FINITE_STEPS` steps, and at most the steps since the last evaluation.

    Attributes:
        weights: the copy, by parameter name.
        step: number of updates that the copied weights have had.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, eval_steps: int | None) -> None:
        """Copy the initial weights.

        Args:
            parameters: trained parameters, by name.
            eval_steps: steps between evaluations; None: there is none.
        """
        self.weights, self.step = copies(parameters), 0
        self._parameters = parameters
        self._limit = min(LAST_FINITE_STEPS, eval_steps or LAST_FINITE_STEPS)

    def update(self, step: int) -> None:
        """Copy the weights, which have had `step` updates and gave finite numbers, if a copy is due."""
        if step % max(1, min(self._limit, step // LAST_FINITE_SHARE)) == 0:
            assign(self.weights, self._parameters)
            self.step = step

    def restore(self) -> None:
        """Put the copy into the model."""
        assign(self._parameters, self.weights)

    def load(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Continue with the copy in a checkpoint."""
        assign(self.weights, weights)
        self.step = step


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def assign(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors of the same names, in place."""
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])
    invalidate_cached_tensors()
