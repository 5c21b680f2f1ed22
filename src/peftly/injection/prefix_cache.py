"""Caches for one call of a stack: with a prefix in every layer, or without any storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from peftly.injection.insertion import InsertionPlan, insert_columns

__all__ = ["NeverUpdated", "PassThroughCache", "PrefixCache"]


class PrefixCache(Cache):  # type: ignore[misc]
    """A cache for one call that inserts a prefix into the keys and values that it is given.

    Attributes:
        inner: cache that stores the longer keys and values, or None.
        result: cache that the caller gets back.
        states: keys and values of the prefix by turns, (2 x layers, batch, heads, count, head_dim).
        plan: columns of the prefix.
        is_in_front: whether these are the first columns of every sequence.
    """

    def __init__(
        self, config: Any, inner: Cache | None, result: Any, states: Sequence[Tensor] | Tensor, plan: InsertionPlan
    ) -> None:
        """Create a cache.

        Args:
            config: configuration of the stack, which has the types of its layers.
            inner, result, states, plan: see the attributes.
        """
        types = getattr(config, "layer_types", None) or ["full_attention"] * (len(states) // 2)
        super().__init__(layers=[_PrefixLayer(self, index, "sliding" in type_) for index, type_ in enumerate(types)])
        self.inner, self.result, self.states, self.plan = inner, result, states, plan
        # torch.export cannot branch on values; the general way to insert the prefix serves both.
        self.is_in_front = not torch.compiler.is_compiling() and not bool(plan.before.any())

    def with_prefix(self, prefix: Tensor, x: Tensor) -> Tensor:
        """Return `x`, (batch, heads, length, head_dim), with `prefix`, (batch, heads, count, head_dim), inserted."""
        joined = torch.cat([prefix.to(x), x], dim=2)
        if self.is_in_front:
            return joined
        count = prefix.shape[2]
        inserted = torch.arange(count, device=x.device).expand(x.shape[0], -1)
        text = torch.arange(count, joined.shape[2], device=x.device).expand(x.shape[0], -1)
        source = insert_columns(text, self.plan, inserted)[:, None, :, None]
        return joined.gather(2, source.expand(-1, x.shape[1], -1, x.shape[3]))


class _PrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `PrefixCache`."""

    is_sliding = False

    def __init__(self, cache: PrefixCache, index: int, is_sliding: bool) -> None:
        super().__init__()
        self.cache, self.index, self.is_sliding = cache, index, is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer stores no tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return all keys and values of the call, and store them in the inner cache."""
        keys = self.cache.with_prefix(self.cache.states[2 * self.index], key_states)
        values = self.cache.with_prefix(self.cache.states[2 * self.index + 1], value_states)
        if self.cache.inner is None:
            return keys, values
        stored: tuple[Tensor, Tensor] = self.cache.inner.update(keys, values, self.index, *args, **kwargs)
        return stored

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys and the offset of the first one."""
        columns = query_length + self.cache.plan.count
        if self.cache.inner is None:
            return columns, 0
        sizes: tuple[int, int] = self.cache.inner.get_mask_sizes(columns, self.index)
        return sizes

    def get_seq_length(self) -> int:
        """Return the number of columns in front of those of the call."""
        return self.cache.plan.count

    def get_max_length(self) -> int:
        """Return -1: the length has no limit."""
        return -1


class PassThroughCache(Cache):  # type: ignore[misc]
    """A cross-attention cache that stores nothing."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_PassThroughLayer() for _ in range(layers)])


class _PassThroughLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `PassThroughCache`."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer stores no tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the call."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys and the offset of the first one."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: the layer stores no tensors."""
        return 0

    def get_max_length(self) -> int:
        """Return -1: the length has no limit."""
        return -1


class NeverUpdated(dict[int, bool]):
    """Record of an `EncoderDecoderCache` of the layers whose states it stores, for one that stores none."""

    def __setitem__(self, layer: int, is_updated: bool) -> None:
        """Record nothing."""
