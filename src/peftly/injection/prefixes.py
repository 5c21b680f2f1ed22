"""Prefixes: trained keys and values that every layer of a stack attends to, as if words stood in front of the text.

A prefix enters through the stack's cache, which answers with the prefix put into the keys and values that it is given:
after each row's padding, where words would stand. A training step's cache keeps nothing, so that a checkpointed block
may be computed again; `generate`'s own keeps the prefix with the rest, and goes on without us.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.cached_calls import cached_insertion, continue_after
from peftly.injection.caching import Kept
from peftly.injection.insertion import InsertionPlan, insert_columns
from peftly.injection.layers import LAYER_ADAPTERS, LayerAdapter, add_layer_adapter, remove_layer_adapters
from peftly.injection.prefix_cache import NeverUpdated, PassThrough, PrefixCache
from peftly.injection.selection import ActiveAdapters, AdapterNames, selection_of

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = [
    "Prefix",
    "add_prefix",
    "checkpointing_with_prefix",
    "chosen_count",
    "drop_prefix",
    "enter",
    "key_value_shape",
    "leave",
    "recorded_states",
]


class Prefix(LayerAdapter):
    """The keys and values of one adapter.

    Attributes:
        rows: (count, layers x 2 x heads x head_dim), keys before values in each layer, or what `encoder` makes them of.
        encoder: a network that is trained with them; None: the keys and values are trained themselves.
        kept: what that network makes of them.
    """

    has_forward = False

    def __init__(self, rows: Tensor, shape: tuple[int, int, int], encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.float())
        self.shape = shape
        self.encoder = encoder
        self.kept = Kept()

    def values(self) -> Tensor:
        """Return keys and values in one row for each place, as PEFT files have them."""
        if self.encoder is None:
            return self.rows
        encoded: Tensor = self.encoder(self.rows)
        return encoded

    def states(self) -> Tensor:
        """Return them as (2 x layers, heads, count, head_dim)."""
        layers, heads, width = self.shape
        made = None if self.encoder is None else self.kept.get(self, None, lambda: [self.values()])
        values = self.values() if made is None else made[0]
        return values.view(-1, 2 * layers, heads, width).permute(1, 2, 0, 3)


def key_value_shape(body: StackHooks) -> tuple[int, int, int]:
    """Return how many layers a stack has, and the heads and their width that its keys have."""
    config, behind = body.config, body.role == "target"
    layer_names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers") if behind else ("num_hidden_layers",)
    head_names = ("decoder_attention_heads", "num_attention_heads") if behind else ("num_attention_heads",)
    heads = _first(config, head_names)
    width = _first(config, ("head_dim", "d_kv")) or config.hidden_size // heads
    return _first(config, layer_names), _first(config, ("num_key_value_heads",)) or heads, width


def _first(config: Any, names: tuple[str, ...]) -> int:
    """Return the first of these numbers that a configuration has, or 0."""
    return int(next((value for name in names if (value := getattr(config, name, None))), 0))


def add_prefix(model: Any, name: str, change: Prefix) -> None:
    """Let every layer of `model` attend to the prefix of adapter `name`."""
    body: StackHooks = model._peftly.bodies.attending
    add_layer_adapter(model, body.module, name, change)
    for block in blocks_of(body.module):
        # transformers takes the cache from a checkpointed block, which may write it twice. Ours is only read.
        block._can_checkpoint_with_cache = True


def drop_prefix(model: Any, name: str) -> None:
    """Undo `add_prefix`."""
    body: StackHooks = model._peftly.bodies.attending
    remove_layer_adapters(body.module, name)
    if not any(_prefixes(body)):
        for block in blocks_of(body.module):
            vars(block).pop("_can_checkpoint_with_cache", None)


def chosen_count(body: StackHooks) -> int:
    """Return how long the longest prefix of a row is, with the adapters that are on."""
    return max(sum(map(_length, prefixes)) for prefixes in _chosen(body))


def enter(body: StackHooks, call: dict[str, Any]) -> None:
    """Give a call of `body` a cache that answers with the prefixes of the adapters that are on."""
    cache = cast(Any, call.get("past_key_values"))
    known: InsertionPlan | None = getattr(cache, "prefix_insertion", None)
    if body.role == "source" or not (known or any(_prefixes(body))):
        return
    if call.get("packing") is not None:
        if any(_owners(body)):
            states, _ = _batch(body, 1)
            call["packing"] = packing = call["packing"].with_states(states[:, 0].view(-1, 2, *states.shape[2:]))
            body.check_length(packing.longest, None, states.shape[3])
        return
    checkpointed = _is_checkpointed(body)
    if known is None and not any(_owners(body)):
        if checkpointed:
            call["use_cache"], call["past_key_values"] = False, None
        return
    slots = cached_insertion(call, known, _owners(body), "prefixes")
    if slots is None:
        _start(body, call, None if checkpointed else cache, stores=not checkpointed)
        return
    if call.get("attention_mask") is None and body.role == "target" and len(slots.owners) > 1:
        # `generate` masks no answers, which have no padding; but where prefixes differ, some places are empty.
        text = int(cache.get_seq_length()) - slots.count + _words(call).shape[1]
        call["attention_mask"] = _words(call).new_ones(_words(call).shape[0], text, dtype=torch.long)
    continue_after(slots, call)


@contextmanager
def checkpointing_with_prefix(body: StackHooks, call: dict[str, Any]) -> Iterator[None]:
    """Let a stack that takes the cache from its checkpointed blocks (GPT-2) leave them a prefix."""
    module, flag = body.module, "gradient_checkpointing"
    if not (isinstance(_own_cache(call), PrefixCache) and vars(module).get(flag)):
        yield
        return
    setattr(module, flag, False)
    try:
        yield
    finally:
        setattr(module, flag, True)


def leave(body: StackHooks, call: dict[str, Any], output: Any) -> Any:
    """Hand the caller's own cache back, in which the prefix stands now."""
    wrapped = _own_cache(call)
    if not isinstance(wrapped, PrefixCache):
        return output
    if isinstance(output, tuple):
        return tuple(wrapped.result if one is call["past_key_values"] else one for one in output)
    if "past_key_values" in output:
        output["past_key_values"] = wrapped.result
    return output


def _start(body: StackHooks, call: dict[str, Any], cache: Any, *, stores: bool) -> None:
    words, mask, positions = _words(call), call.get("attention_mask"), call.get("position_ids")
    if mask is None and positions is not None and bool((torch.diff(positions) != 1).any()):
        raise MethodError("a prefix cannot be put into packed rows; give each text a row of its own")
    batch = words.shape[0]
    start = words.new_zeros(batch, 1, dtype=torch.long)
    if mask is None and (len(_owners(body)) > 1 or body.role == "encoder"):
        mask = torch.ones(words.shape[:2], dtype=torch.long, device=words.device)
    elif mask is not None:
        start = mask.ne(0).int().argmax(1, keepdim=True)
    states, used = _batch(body, batch)
    slots = InsertionPlan(start * used, used, _owners(body))
    if mask is not None:
        call["attention_mask"] = mask = insert_columns(mask, slots, used)
        call.pop("position_ids", None)
    elif positions is not None:
        call["position_ids"] = positions + slots.count
    body.check_length(words.shape[1] + slots.count, mask, slots.count)
    uses_cache = call.get("use_cache")
    uses_cache = getattr(body.config, "use_cache", False) if uses_cache is None else uses_cache
    if stores and cache is None and uses_cache and body.role != "encoder":
        cache = DynamicCache(config=body.config)
        cache = EncoderDecoderCache(cache, DynamicCache(config=body.config)) if body.role == "target" else cache
    if not stores:
        call["use_cache"] = False
    call["past_key_values"] = _wrapped(body, cache, states, slots)


def _words(call: dict[str, Any]) -> Tensor:
    """Return the ids or the embeddings that a stack is called with, (batch, length, ...)."""
    words: Tensor = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    return words


def _wrapped(body: StackHooks, cache: Any, states: Tensor, slots: InsertionPlan) -> Any:
    """Return a cache that answers with the prefix and, if there is one, lets `cache` keep the keys and values."""
    if cache is not None:
        cache.prefix_insertion = slots
    if body.role != "target":
        return PrefixCache(body.config, cache, cache, states, slots)
    if cache is None:
        both = EncoderDecoderCache(DynamicCache(), DynamicCache())
        both.cross_attention_cache = PassThrough(key_value_shape(body)[0])
        both.is_updated = NeverUpdated()
    else:
        both = copy.copy(cache)
    inner = None if cache is None else cache.self_attention_cache
    both.self_attention_cache = PrefixCache(body.config, inner, cache, states, slots)
    return both


def _batch(body: StackHooks, batch: int) -> tuple[Tensor, Tensor]:
    """Return the prefixes of a call's rows, (2 x layers, batch, heads, count, width), and which of it is in use."""
    rows, chosen = selection_of(body.model).rows, _chosen(body)
    count = max(sum(map(_length, prefixes)) for prefixes in chosen)
    distinct: list[list[Prefix]] = []
    for prefixes in chosen:
        if prefixes not in distinct:
            distinct.append(prefixes)
    states = torch.stack([_joined(body, prefixes, count) for prefixes in distinct], dim=1)
    spread = len(rows.spread(batch)) // len(chosen)
    which = torch.tensor([distinct.index(prefixes) for prefixes in chosen], device=states.device)
    lengths = torch.tensor([sum(map(_length, prefixes)) for prefixes in chosen], device=states.device)
    used = torch.arange(count, device=states.device) >= count - lengths[:, None]
    if len(distinct) == 1:
        states = states.expand(-1, batch, -1, -1, -1)
    else:
        states = states.index_select(1, which.repeat_interleave(spread))
    return states, used.long().repeat_interleave(spread, 0)


def _joined(body: StackHooks, prefixes: list[Prefix], count: int) -> Tensor:
    """Return several prefixes one after the other, (2 x layers, heads, count, width), behind zeros."""
    layers, heads, width = key_value_shape(body)
    missing = count - sum(map(_length, prefixes))
    device = next(body.module.parameters()).device
    empty = torch.zeros(2 * layers, heads, missing, width, device=device)
    return torch.cat([empty, *(prefix.states() for prefix in prefixes)], dim=2)


def _chosen(body: StackHooks) -> list[list[Prefix]]:
    """Return the prefixes of each row that adapters were chosen for."""
    own = dict(_prefixes(body))
    return [[prefix for name, prefix in own.items() if name in names] for names in selection_of(body.model).rows.sets]


def _owners(body: StackHooks) -> tuple[AdapterNames, ...]:
    """Return the adapters with a prefix that are on, row by row."""
    having = frozenset(name for name, _ in _prefixes(body))
    return tuple(names & having for names in selection_of(body.model).rows.sets)


def _prefixes(body: StackHooks) -> Iterator[tuple[str, Prefix]]:
    changes = getattr(body.module, LAYER_ADAPTERS, {})
    return ((name, change) for name, change in changes.items() if isinstance(change, Prefix))


def _length(prefix: Prefix) -> int:
    return prefix.rows.shape[0]


def _own_cache(call: dict[str, Any]) -> Any:
    """Return the cache of a call's own words, behind an encoder or not."""
    cache = call.get("past_key_values")
    return getattr(cache, "self_attention_cache", cache)


def _is_checkpointed(body: StackHooks) -> bool:
    return any(block.gradient_checkpointing and block.training for block in blocks_of(body.module))


def recorded_states(body: StackHooks, ids: Tensor) -> Tensor:
    """Return the keys and values that the bare base has for some words, (2 x layers, heads, count, head_dim).

    A decoder behind an encoder sees the words there too.
    """
    layers, heads, width = key_value_shape(body)
    device = next(body.module.parameters()).device
    ids = ids[None].to(device)
    empty = InsertionPlan(ids.new_zeros(1, 0), ids.new_zeros(1, 0), (frozenset(),))
    kept = DynamicCache()
    cache = PrefixCache(body.config, kept, None, torch.zeros(2 * layers, 1, heads, 0, width, device=device), empty)
    with torch.no_grad(), selection_of(body.model).use(ActiveAdapters([frozenset()])):
        if body.role == "target":
            both = EncoderDecoderCache(DynamicCache(), DynamicCache())
            both.self_attention_cache = cache
            states = body.model.get_encoder()(input_ids=ids).last_hidden_state
            body.module(input_ids=ids, encoder_hidden_states=states, past_key_values=both)
        else:
            body.module(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
    return torch.stack([half[0] for layer in kept.layers for half in (layer.keys, layer.values)])
