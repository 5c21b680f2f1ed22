"""Low-rank updates of several adapters, in calls without gradients, as one update whose rank is the sum of the ranks.

Where batch elements have different adapters, each element is multiplied by the A of every adapter, and the products
with the A of other adapters are set to 0 before the product with B. For long inputs with many adapters, the additional
multiplications cost more time than the single call saves.
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
    """Low-rank updates of one layer, stacked along their ranks.

    Attributes:
        lora_a: (sum of ranks, in_features).
        lora_b: (out_features, sum of ranks), multiplied by the scaling of each adapter.
        owners: name of the adapter of each stacked rank, (sum of ranks,).
    """

    lora_a: Tensor
    lora_b: Tensor
    owners: tuple[str, ...]

    def low(self, x: Tensor, without: Tensor | None) -> Tensor:
        """Return the product of `x` with the stacked A.

        Args:
            x: (batch, ..., in_features).
            without: true where a batch element does not have the adapter of a rank, (batch, sum of ranks); None: each
                batch element has all adapters.

        Returns:
            (batch, ..., sum of ranks).
        """
        low = F.linear(x, self.lora_a)
        if without is None:
            return low
        # Not a product with 0 and 1, which is NaN where the product with another adapter overflows.
        return low.masked_fill(without.view(x.shape[0], *[1] * (x.ndim - 2), -1), 0.0)

    def add_to(self, output: Tensor, low: Tensor, *, in_place: bool) -> Tensor:
        """Return `output` plus the product of `low` with the stacked B.

        Args:
            output: output of the layer without adapters, (batch, ..., out_features).
            low: result of `low`, (batch, ..., sum of ranks).
            in_place: whether `output` may be changed.
        """
        if in_place and output.dtype == low.dtype == self.lora_b.dtype:
            output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), self.lora_b.T)
            return output
        return output + F.linear(low, self.lora_b).to(output.dtype)


def stack_factors(
    factors: Mapping[str, tuple[Factors, float]], x: Tensor, *, differ: bool, is_short: bool
) -> StackedFactors | None:
    """Return the updates of a layer as one update, a copy of the present values of their factors.

    Args:
        factors: A, B and scaling of each adapter, by the name of the adapter.
        x: input of the layer, (batch, ..., in_features).
        differ: whether batch elements have different adapters.
        is_short: whether the input has few tokens.

    Returns:
        None if one update is not faster, or if the factors of one adapter are not finite, which would make the outputs
        of batch elements with other adapters NaN.
    """
    if x.ndim < 2 or not (is_short or (differ and _are_small([pair for pair, _ in factors.values()]))):
        return None
    lora_a = torch.cat([a for (a, _), _ in factors.values()]).to(x.dtype)
    lora_b = torch.cat([scaling * b for (_, b), scaling in factors.values()], dim=1).to(x.dtype)
    if differ and not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        return None
    return StackedFactors(lora_a, lora_b, tuple(name for name, ((a, _), _) in factors.items() for _ in range(len(a))))


def _are_small(factors: Collection[Factors]) -> bool:
    """Return whether all factors together have at most half as many elements as the weight that they update."""
    a, b = next(iter(factors))
    return sum(a.numel() + b.numel() for a, b in factors) <= a.shape[1] * b.shape[0] / 2
