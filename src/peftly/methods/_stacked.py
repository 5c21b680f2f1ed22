"""LoRA in calls without gradients: the factors of all adapters stacked, so that one product of a layer does for all.

Where rows have different adapters, every row is multiplied by the factors of every adapter, and what is another's is
set to 0 in between. In long calls with many adapters that costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from peftly.methods._layers import OwnForward
    from peftly.methods._selection import Rows
    from peftly.methods.lora import LoRAChange

__all__ = ["Stack", "stack_of"]


class Stack:
    """The updates of a layer's adapters as one of the sum of their ranks.

    Attributes:
        lora_a: (sum of ranks, in_features).
        lora_b: (out_features, sum of ranks), scaled.
        owners: the adapter of each of the stacked ranks.
        rows: which adapters each row has.
    """

    def __init__(self, lora_a: Tensor, lora_b: Tensor, owners: tuple[str, ...], rows: Rows) -> None:
        self.lora_a, self.lora_b, self.owners, self.rows = lora_a, lora_b, owners, rows
        self._others: dict[int, Tensor] = {}

    def __call__(self, inner: OwnForward, x: Tensor) -> Tensor:
        """Return the layer's output with each row's adapters.

        Args:
            inner: what the layer computes without any adapter.
            x: (rows, ..., in_features).
        """
        low = F.linear(x, self.lora_a)
        if self.rows.differ:
            # Not times 0 and 1: where another adapter overflows, that would be NaN.
            low = low.masked_fill(self._of_others(x), 0.0)
        output = inner(x)
        if inner.is_plain(nn.Linear) and output.dtype == low.dtype == self.lora_b.dtype:
            # Nobody else has it, so it may be added to.
            output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), self.lora_b.T)
            return output
        return output + F.linear(low, self.lora_b).to(output.dtype)

    def _of_others(self, x: Tensor) -> Tensor:
        """Return which of the stacked ranks are of adapters that a row of `x` does not have, (rows, ..., ranks)."""
        count = x.shape[0]
        if count not in self._others:
            table = [[name not in names for name in self.owners] for names in self.rows.spread(count)]
            self._others[count] = torch.tensor(table, device=x.device)
        return self._others[count].view(count, *[1] * (x.ndim - 2), -1)


def stack_of(changes: Mapping[str, LoRAChange], rows: Rows, x: Tensor, *, is_short: bool) -> Stack | None:
    """Return the updates of a layer as they are now.

    Args:
        changes: what adapters do at the layer, by the adapter's name.
        rows: which of them each row has.
        x: an input of the layer.
        is_short: whether it has few words.

    Returns:
        None if it is not faster, or if one adapter would spoil the rows of others, as its factors are not finite.
    """
    pairs = {name: change.factors() for name, change in changes.items()}
    if x.ndim < 2 or not (is_short or (rows.differ and _are_small(pairs.values()))):
        return None
    dtype = x.dtype
    lora_a = torch.cat([a for a, _ in pairs.values()]).to(dtype)
    lora_b = torch.cat([changes[name].scaling * b for name, (_, b) in pairs.items()], dim=1).to(dtype)
    if rows.differ and not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        return None
    return Stack(lora_a, lora_b, tuple(name for name, (a, _) in pairs.items() for _ in range(len(a))), rows)


def _are_small(pairs: Collection[tuple[Tensor, Tensor]]) -> bool:
    """Whether factors have together at most half as many entries as the weight that they are for."""
    a, b = next(iter(pairs))
    return sum(a.numel() + b.numel() for a, b in pairs) <= a.shape[1] * b.shape[0] / 2
