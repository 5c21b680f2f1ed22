"""Low-rank updates of several adapters in calls without gradients, as one update of the sum of their ranks.

Where batch elements have different adapters, each of them is multiplied by the factors of every adapter, and the
products with the factors of other adapters are set to 0 before the second product. In long calls with many adapters
that costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["StackedFactors", "stack_factors"]

Factors = tuple[Tensor, Tensor]
"""A, (rank, in_features), and B, (out_features, rank), of one low-rank update."""


@dataclass(frozen=True)
class StackedFactors:
    """Low-rank updates of one layer as one update of the sum of their ranks.

    Attributes:
        lora_a: (sum of ranks, in_features).
        lora_b: (out_features, sum of ranks), scaled.
        owners: name of the adapter of each of the stacked ranks.
    """

    lora_a: Tensor
    lora_b: Tensor
    owners: tuple[str, ...]

    def low(self, x: Tensor, without: Tensor | None) -> Tensor:
        """Return the product of `x` with the stacked A.

        Args:
            x: (batch, ..., in_features).
            without: (batch, sum of ranks), true where a batch element lacks the adapter of a rank; None: each batch
                element has all adapters.

        Returns:
            (batch, ..., sum of ranks).
        """
        low = F.linear(x, self.lora_a)
        if without is None:
            return low
        # Not times 0 and 1: where another adapter overflows, that would be NaN.
        return low.masked_fill(without.view(x.shape[0], *[1] * (x.ndim - 2), -1), 0.0)

    def add_to(self, output: Tensor, low: Tensor, *, in_place: bool) -> Tensor:
        """Return `output` plus the product of `low` with the stacked B.

        Args:
            output: (batch, ..., out_features), the output of the layer without adapters.
            low: (batch, ..., sum of ranks), from `low`.
            in_place: whether nobody else holds `output`, so that it may be changed.
        """
        if in_place and output.dtype == low.dtype == self.lora_b.dtype:
            output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), self.lora_b.T)
            return output
        return output + F.linear(low, self.lora_b).to(output.dtype)


def stack_factors(
    factors: Mapping[str, tuple[Factors, float]], x: Tensor, *, differ: bool, is_short: bool
) -> StackedFactors | None:
    """Return the updates of a layer as one update, with the values that their factors have now.

    Args:
        factors: A, B and scaling of each adapter, by its name.
        x: an input of the layer, (batch, ..., in_features).
        differ: whether batch elements have different adapters.
        is_short: whether the input has few tokens.

    Returns:
        None if one update is not faster, or if one adapter would spoil the batch elements of others because its factors
        are not finite.
    """
    if x.ndim < 2 or not (is_short or (differ and _are_small([pair for pair, _ in factors.values()]))):
        return None
    lora_a = torch.cat([a for (a, _), _ in factors.values()]).to(x.dtype)
    lora_b = torch.cat([scaling * b for (_, b), scaling in factors.values()], dim=1).to(x.dtype)
    if differ and not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        return None
    return StackedFactors(lora_a, lora_b, tuple(name for name, ((a, _), _) in factors.items() for _ in range(len(a))))


def _are_small(factors: Collection[Factors]) -> bool:
    """Whether all factors together have at most half as many elements as the weight that they update."""
    a, b = next(iter(factors))
    return sum(a.numel() + b.numel() for a, b in factors) <= a.shape[1] * b.shape[0] / 2
