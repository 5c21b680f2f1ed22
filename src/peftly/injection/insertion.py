"""Places in the rows of a batch, each row's own, where something is put in between its words. Plain tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from peftly.injection.selection import AdapterNames

__all__ = [
    "InsertionPlan",
    "cached_beside_text",
    "insert_columns",
    "insert_packed",
    "pick",
    "select_cached_rows",
    "text_columns",
]

CACHED = ("slots", "prefix_insertion")
"""Attributes of a cache that say where virtual tokens and prefixes stand in it."""


@dataclass(frozen=True)
class InsertionPlan:
    """What is put into the rows of a call. Rows that get less than others have empty slots, which nothing sees.

    Attributes:
        at: the column of the row that each slot stands in front of, (batch, count), not falling along a row.
        used: 0 for empty slots, which the attention mask hides, (batch, count).
        owners: the adapters that they are of, row by row; one entry if it is the same for all.
    """

    at: Tensor
    used: Tensor
    owners: tuple[AdapterNames, ...]

    @property
    def count(self) -> int:
        """How much longer each row gets."""
        return self.at.shape[1]

    def select(self, rows: Tensor) -> Self:
        """Return the slots of some rows, which may repeat."""
        rows = rows.to(self.at.device)
        return replace(self, at=self.at[rows], used=self.used[rows])

    def repeat_to(self, batch: int) -> Self:
        """Return the slots of `batch` rows, where beams repeat each row in place."""
        rows = torch.arange(self.at.shape[0], device=self.at.device)
        return self.select(rows.repeat_interleave(batch // self.at.shape[0]))

    def columns(self) -> Tensor:
        """Return the columns that the slots have in the longer rows, (batch, count)."""
        return self.at + torch.arange(self.count, device=self.at.device)


def insert_columns(x: Tensor, slots: InsertionPlan, fill: Tensor) -> Tensor:
    """Put values into the slots of every row of `x`.

    Args:
        x: (batch, length).
        slots: where.
        fill: (batch, count).

    Returns:
        (batch, length + count).
    """
    longer = x.new_empty(x.shape[0], x.shape[1] + slots.count)
    longer.scatter_(1, text_columns(slots, x.shape[1]), x)
    return longer.scatter_(1, slots.columns(), fill.to(x.dtype))


def text_columns(slots: InsertionPlan, length: int) -> Tensor:
    """Return where `insert_columns` puts each of the `length` old columns, (batch, length)."""
    column = torch.arange(length, device=slots.at.device).expand(slots.at.shape[0], -1)
    return column + torch.searchsorted(slots.at.contiguous(), column.contiguous(), right=True)


def insert_packed(ids: Tensor, positions: Tensor, virtual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put `virtual` in front of every example of one packed row, whose positions restart at each example.

    Args:
        ids, positions: (1, length).
        virtual: (count,).

    Returns:
        The longer ids and positions, and the new column of each old one, each (1, ...).
    """
    count = virtual.shape[0]
    starts = torch.diff(positions, prepend=positions[:, :1] - 2) != 1
    examples = int(starts.sum())
    columns = torch.arange(ids.shape[1], device=ids.device) + count * starts.cumsum(1)
    is_text = torch.zeros(1, ids.shape[1] + count * examples, dtype=torch.bool, device=ids.device)
    is_text.scatter_(1, columns, True)
    longer_ids, longer_positions = ids.new_empty(is_text.shape), positions.new_empty(is_text.shape)
    longer_ids[~is_text] = virtual.to(ids.dtype).repeat(examples)
    longer_positions[~is_text] = torch.arange(count, device=ids.device, dtype=positions.dtype).repeat(examples)
    return longer_ids.scatter_(1, columns, ids), longer_positions.scatter_(1, columns, positions + count), columns


def pick(states: Tensor, columns: Tensor) -> Tensor:
    """Return the rows of `states` (batch, length, ...) at `columns` (batch, kept)."""
    index = columns.reshape(*columns.shape, *[1] * (states.ndim - 2))
    return states.gather(1, index.expand(states.shape[0], -1, *states.shape[2:]))


def cached_beside_text(cache: Any) -> int:
    """Return how many columns of a cache are no text."""
    found: list[InsertionPlan | None] = [getattr(cache, attribute, None) for attribute in CACHED]
    return sum(slots.count for slots in found if slots is not None)


def select_cached_rows(cache: Any, rows: Tensor) -> None:
    """Let what stands in a cache go where its rows go, after the cache itself was reordered."""
    for attribute in CACHED:
        if getattr(cache, attribute, None) is not None:
            setattr(cache, attribute, getattr(cache, attribute).select(rows))
