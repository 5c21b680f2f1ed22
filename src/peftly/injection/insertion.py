"""Columns that are inserted into the sequences of a batch, for each batch element at its own offsets. Plain tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from peftly.injection.selection import AdapterNames

__all__ = [
    "CacheInsertions",
    "InsertionPlan",
    "cache_insertions",
    "insert_columns",
    "insert_packed",
    "insert_states",
    "pick_columns",
    "reorder_cache_insertions",
    "store_cache_insertions",
    "text_columns",
]


@dataclass(frozen=True)
class InsertionPlan:
    """Columns to insert into the sequences of a call.

    All sequences get equally many columns. Some are unused in a sequence that needs fewer, and the mask hides these.

    Attributes:
        before: column of the sequence before which each inserted column goes, (batch, count), ascending.
        used: 1 for used columns, 0 for unused ones, (batch, count).
        owners: names of the adapters that the columns are from, for each batch element, or one entry for all.
    """

    before: Tensor
    used: Tensor
    owners: tuple[AdapterNames, ...]

    @property
    def count(self) -> int:
        """Number of columns by which each sequence grows."""
        return self.before.shape[1]

    def select(self, indices: Tensor) -> Self:
        """Return the plan of the batch elements at `indices`, which may repeat."""
        indices = indices.to(self.before.device)
        return replace(self, before=self.before[indices], used=self.used[indices])

    def repeat_to(self, batch_size: int) -> Self:
        """Return the plan of `batch_size` batch elements, where beams repeat each element."""
        indices = torch.arange(self.before.shape[0], device=self.before.device)
        return self.select(indices.repeat_interleave(batch_size // self.before.shape[0]))

    def columns(self) -> Tensor:
        """Return the columns of the inserted tokens in the longer sequences, (batch, count)."""
        return self.before + torch.arange(self.count, device=self.before.device)


def insert_columns(x: Tensor, plan: InsertionPlan, fill: Tensor) -> Tensor:
    """Insert values into every sequence of `x`.

    Args:
        x: (batch, length).
        plan: columns to insert.
        fill: values of the inserted columns, (batch, count).

    Returns:
        (batch, length + count).
    """
    longer = x.new_empty(x.shape[0], x.shape[1] + plan.count)
    longer.scatter_(1, text_columns(plan, x.shape[1]), x)
    return longer.scatter_(1, plan.columns(), fill.to(x.dtype))


def insert_states(x: Tensor, plan: InsertionPlan, fill: Tensor) -> Tensor:
    """Insert embeddings, (batch, count, width), into every sequence of `x`, (batch, length, width)."""
    batch_size, length = x.shape[:2]
    source = torch.arange(length + plan.count, device=x.device).expand(batch_size, -1)
    columns = insert_columns(source[:, :length], plan, source[:, length:])
    return pick_columns(torch.cat([x, fill.to(x)], dim=1), columns)


def text_columns(plan: InsertionPlan, length: int) -> Tensor:
    """Return the column to which `insert_columns` moves each of `length` columns, (batch, length)."""
    column = torch.arange(length, device=plan.before.device).expand(plan.before.shape[0], -1)
    return column + torch.searchsorted(plan.before.contiguous(), column.contiguous(), right=True)


def insert_packed(ids: Tensor, positions: Tensor, virtual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Insert `virtual` in front of every example of a packed sequence, in which positions restart at each example.

    Args:
        ids, positions: (1, length).
        virtual: ids of virtual tokens, (count,).

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


def pick_columns(states: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of `states`, (batch, length, ...), at `columns`, (batch, picked)."""
    index = columns.reshape(*columns.shape, *[1] * (states.ndim - 2))
    return states.gather(1, index.expand(states.shape[0], -1, *states.shape[2:]))


# --- columns of a cache

_ATTRIBUTE = "_peftly_insertions"
"""Attribute of a cache.

An attribute, because a cache outlives the call that fills it, belongs to the caller, and is copied by callers
(`copy.deepcopy` of the cache of a common prompt) and by `generate`. A table next to it would not follow its copies.
"""


@dataclass(frozen=True)
class CacheInsertions:
    """Columns of a cache that are not text.

    Attributes:
        virtual_tokens: columns of virtual tokens.
        prefix: columns of prefixes.
    """

    virtual_tokens: InsertionPlan | None = None
    prefix: InsertionPlan | None = None

    @property
    def count(self) -> int:
        """Number of these columns."""
        return sum(plan.count for plan in (self.virtual_tokens, self.prefix) if plan is not None)

    def select(self, indices: Tensor) -> Self:
        """Return the columns of the batch elements at `indices`, which may repeat."""
        plans = {"virtual_tokens": self.virtual_tokens, "prefix": self.prefix}
        return replace(self, **{name: plan.select(indices) for name, plan in plans.items() if plan is not None})


def cache_insertions(cache: Any) -> CacheInsertions:
    """Return the columns of a cache that are not text; there are none in None."""
    insertions: CacheInsertions = getattr(cache, _ATTRIBUTE, CacheInsertions())
    return insertions


def store_cache_insertions(cache: Any, **plans: InsertionPlan | None) -> None:
    """Note on `cache` the columns of virtual tokens or prefixes in it; see `CacheInsertions` for the names."""
    setattr(cache, _ATTRIBUTE, replace(cache_insertions(cache), **plans))


def reorder_cache_insertions(cache: Any, indices: Tensor) -> None:
    """Let the columns noted on `cache` follow its batch elements, after the cache was reordered by `indices`."""
    setattr(cache, _ATTRIBUTE, cache_insertions(cache).select(indices))
