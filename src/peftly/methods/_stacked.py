"""LoRA where rows have different adapters: the factors of all of them stacked, so that one product does for all rows.

For text that is being generated. The layer's product then takes hardly longer for all rows than for those of one
adapter, and is not taken once for each. Every row is multiplied by the factors of every adapter, and what is another's
is set to 0 in between. In long calls, as in training, that costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from peftly.methods._selection import Rows
    from peftly.methods.lora import LoRAChange

__all__ = ["MOST_WORDS", "Stack", "stack_of"]

MOST_WORDS = 256
"""Of all rows together, up to which stacking was faster in bf16 and fp32, with 2 adapters and with 16."""


@dataclass(frozen=True)
class Stack:
    """The updates of a layer's adapters as one of the sum of their ranks.

    Attributes:
        lora_a: (sum of ranks, in_features).
        lora_b: (out_features, sum of ranks), scaled.
        ranks: of each adapter, by name, in their order there.
    """

    lora_a: Tensor
    lora_b: Tensor
    ranks: tuple[tuple[str, int], ...]

    def update(self, x: Tensor, rows: Rows) -> Tensor:
        """Return the sum of the updates that each row has, (rows, ..., out_features), for `x`, (rows, ..., in)."""
        others = _others(self.ranks, x, rows).view(x.shape[0], *[1] * (x.ndim - 2), -1)
        # Not times 0 and 1: where another adapter overflows, that would be NaN.
        inner = F.linear(x, self.lora_a).masked_fill(others, 0.0)
        return F.linear(inner, self.lora_b)


def stack_of(layer: Any, changes: Mapping[str, LoRAChange], rows: Rows, dtype: torch.dtype) -> Stack | None:
    """Return the stack of a layer's `changes` in `dtype`, without gradients, kept with `rows` until a factor changes.

    None if a factor is not finite, as its adapter would spoil the rows of the others, or was made in inference mode,
    where nothing tells whether it has changed.
    """
    factors = [factor for change in changes.values() for factor in change.tensors()]
    known = rows.kept.get((layer, dtype))
    if known is None or not known.is_of(factors):
        if any(factor.is_inference() for factor in factors):
            return None
        known = rows.kept[layer, dtype] = _Kept(factors, _stacked(changes, dtype))
    return known.stack


class _Kept:
    """A stack, and what it was made of."""

    def __init__(self, factors: list[Tensor], stack: Stack | None) -> None:
        self.factors, self.stack = factors, stack
        self.versions = [factor._version for factor in factors]
        # As long as these are held, nothing else can come to lie where they do.
        self.contents = [factor.detach() for factor in factors]
        self.places = [content.data_ptr() for content in self.contents]

    def is_of(self, factors: list[Tensor]) -> bool:
        """Whether it was made of these factors as they are now."""
        return (
            [*map(id, factors)] == [*map(id, self.factors)]
            and [factor._version for factor in factors] == self.versions
            and [factor.data_ptr() for factor in factors] == self.places
        )


def _stacked(changes: Mapping[str, LoRAChange], dtype: torch.dtype) -> Stack | None:
    pairs = {name: change.factors() for name, change in changes.items()}
    lora_a = torch.cat([a for a, _ in pairs.values()]).to(dtype)
    lora_b = torch.cat([changes[name].scaling * b for name, (_, b) in pairs.items()], dim=1).to(dtype)
    if not (lora_a.isfinite().all() and lora_b.isfinite().all()):
        return None
    return Stack(lora_a, lora_b, tuple((name, len(a)) for name, (a, _) in pairs.items()))


def _others(ranks: tuple[tuple[str, int], ...], x: Tensor, rows: Rows) -> Tensor:
    """Return which of the stacked ranks are of adapters that a row of `x` does not have, (rows, sum of ranks)."""
    key = (ranks, x.shape[0], x.device)
    if key not in rows.kept:
        table = [[name not in names for name, rank in ranks for _ in range(rank)] for names in rows.spread(x.shape[0])]
        rows.kept[key] = torch.tensor(table, device=x.device)
    found: Tensor = rows.kept[key]
    return found
