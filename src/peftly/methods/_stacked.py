"""LoRA in calls without gradients: the factors of all adapters stacked, so that one product of a layer does for all.

Where rows have different adapters, every row is multiplied by the factors of every adapter, and what is another's is
set to 0 in between. In long calls with many adapters that costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from peftly.methods._layers import OwnForward
    from peftly.methods._selection import Rows
    from peftly.methods.lora import LoRAChange

__all__ = ["Stack", "stack_of"]


@dataclass(frozen=True)
class Stack:
    """The updates of a layer's adapters as one of the sum of their ranks.

    Attributes:
        lora_a: (sum of ranks, in_features).
        lora_b: (out_features, sum of ranks), scaled.
        owners: the adapter of each of the stacked ranks.
    """

    lora_a: Tensor
    lora_b: Tensor
    owners: tuple[str, ...]

    def __call__(self, inner: OwnForward, x: Tensor, rows: Rows) -> Tensor:
        """Return the layer's output with each row's adapters.

        Args:
            inner: what the layer computes without any adapter.
            x: (rows, ..., in_features).
            rows: which adapters each row has, all of them stacked.
        """
        low = F.linear(x, self.lora_a)
        if rows.differ:
            others = rows.without(x.shape[0], self.owners, x.device).view(x.shape[0], *[1] * (x.ndim - 2), -1)
            # Not times 0 and 1: where another adapter overflows, that would be NaN.
            low = low.masked_fill(others, 0.0)
        output = inner(x)
        if inner.is_plain(nn.Linear) and output.dtype == low.dtype == self.lora_b.dtype:
            # Nobody else has it, so it may be added to.
            output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), self.lora_b.T)
            return output
        return output + F.linear(low, self.lora_b).to(output.dtype)


def stack_of(changes: Mapping[str, LoRAChange], x: Tensor, *, differ: bool, is_short: bool) -> Stack | None:
    """Return the updates of a layer as they are now.

    Args:
        changes: what adapters do at the layer, by the adapter's name.
        x: an input of the layer.
        differ: whether rows have different ones of them.
        is_short: whether the input has few words.

    Returns:
        None if it is not faster, or if one adapter would spoil the rows of others, as its factors are not finite.
    """
    pairs = {name: change.factors() for name, change in changes.items()}
    if x.ndim < 2 or not (is_short or (differ and _are_small(pairs.values()))):
        return None
    lora_a = torch.cat([a for a, _ in pairs.values()]).to(x.dtype)
    lora_b = torch.cat([changes[name].scaling * b for name, (_, b) in pairs.items()], dim=1).to(x.dtype)
    if differ and not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        return None
    return Stack(lora_a, lora_b, tuple(name for name, (a, _) in pairs.items() for _ in range(len(a))))


def _are_small(pairs: Collection[tuple[Tensor, Tensor]]) -> bool:
    """Whether factors have together at most half as many entries as the weight that they are for."""
    a, b = next(iter(pairs))
    return sum(a.numel() + b.numel() for a, b in pairs) <= a.shape[1] * b.shape[0] / 2
