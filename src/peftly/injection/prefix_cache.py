"""Caches for one call of a stack: with a prefix in every layer, or with nothing kept at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from peftly.injection.insertion import InsertionPlan, insert_columns

__all__ = ["NeverUpdated", "PassThrough", "PrefixCache"]


class PrefixCache(Cache):  # type: ignore[misc]
    """A cache for one call that puts a prefix into what it is given.

    Attributes:
        inner: what keeps the longer keys and values, or None.
        result: what the caller gets back as its cache.
        places: where the prefix goes.
        in_order: whether that is in front of every row.
    """

    def __init__(
        self, config: Any, inner: Cache | None, result: Any, states: Sequence[Tensor] | Tensor, slots: InsertionPlan
    ) -> None:
        """Make it.

        Args:
            config: of the stack, which says what its layers are.
            inner, result: see above.
            states: the prefix, keys and values by turns, (2 x layers, batch, heads, count, width).
            slots: where it goes, see above.
        """
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * (len(states) // 2)
        super().__init__(layers=[_PrefixLayer(self, place, "sliding" in kind) for place, kind in enumerate(kinds)])
        self.inner, self.result, self.states, self.places = inner, result, states, slots
        self.in_order = not bool(slots.at.any())

    @property
    def slots(self) -> InsertionPlan | None:
        """Where virtual tokens stand: the caller's own cache knows."""
        return getattr(self.result, "slots", None)

    @slots.setter
    def slots(self, slots: InsertionPlan | None) -> None:
        if self.result is not None:
            self.result.slots = slots

    def with_prefix(self, prefix: Tensor, x: Tensor) -> Tensor:
        """Return `x` (batch, heads, length, width) with `prefix` (batch, heads, count, width) in its slots."""
        joined = torch.cat([prefix.to(x), x], dim=2)
        if self.in_order:
            return joined
        count = prefix.shape[2]
        places = torch.arange(count, device=x.device).expand(x.shape[0], -1)
        text = torch.arange(count, joined.shape[2], device=x.device).expand(x.shape[0], -1)
        source = insert_columns(text, self.places, places)[:, None, :, None]
        return joined.gather(2, source.expand(-1, x.shape[1], -1, x.shape[3]))


class _PrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `PrefixCache`."""

    is_sliding = False

    def __init__(self, cache: PrefixCache, place: int, is_sliding: bool) -> None:
        super().__init__()
        self.cache, self.place, self.is_sliding = cache, place, is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is kept here."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = self.cache.with_prefix(self.cache.states[2 * self.place], key_states)
        values = self.cache.with_prefix(self.cache.states[2 * self.place + 1], value_states)
        if self.cache.inner is None:
            return keys, values
        kept: tuple[Tensor, Tensor] = self.cache.inner.update(keys, values, self.place, *args, **kwargs)
        return kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        columns = query_length + self.cache.places.count
        if self.cache.inner is None:
            return columns, 0
        sizes: tuple[int, int] = self.cache.inner.get_mask_sizes(columns, self.place)
        return sizes

    def get_seq_length(self) -> int:
        return self.cache.places.count

    def get_max_length(self) -> int:
        return -1


class PassThrough(Cache):  # type: ignore[misc]
    """A cross-attention cache that keeps nothing."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_PassThroughLayer() for _ in range(layers)])


class _PassThroughLayer(CacheLayerMixin):  # type: ignore[misc]
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is kept here."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class NeverUpdated(dict[int, bool]):
    """What an `EncoderDecoderCache` notes down of layers whose states it keeps; here it keeps none."""

    def __setitem__(self, layer: int, is_updated: bool) -> None:
        pass
