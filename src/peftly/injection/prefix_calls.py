"""Calls of a stack with prefixes, which enter through its cache.

The cache of a call returns the keys and values of the prefix together with those that it is given: after the padding of
each sequence, where tokens in front of the text would be. In a training step the cache stores nothing, so that a
checkpointed block may be computed again. The cache of `generate` stores the prefix with the rest, and later calls use
this cache itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.cached_calls import cached_insertion, continue_after, move_positions
from peftly.injection.insertion import InsertionPlan, cache_insertions, insert_columns, store_cache_insertions
from peftly.injection.prefix_cache import NeverUpdated, PassThroughCache, PrefixCache
from peftly.injection.prefixes import (
    Prefix,
    active_prefix_owners,
    active_prefixes,
    has_prefixes,
    key_value_shape,
    max_prefix_length,
)
from peftly.injection.selection import ActiveAdapters, selection_of

if TYPE_CHECKING:
    from peftly.injection.stack_calls import StackCall
    from peftly.injection.stack_hooks import StackHooks

__all__ = ["check_placement", "checkpointing_with_prefix", "insert_prefixes", "restore_cache"]


def insert_prefixes(hooks: StackHooks, call: StackCall) -> None:
    """Give a call of a stack a cache with the active prefixes."""
    arguments = call.arguments
    cache: Any = arguments.get("past_key_values")
    stored = cache_insertions(cache).prefix
    if hooks.role == "source" or not (stored or has_prefixes(hooks)):
        return
    owners = active_prefix_owners(hooks)
    if arguments.get("packing") is not None:
        if any(owners):
            states, _ = _batch_states(hooks, 1)
            packing = arguments["packing"].with_states(states[:, 0].view(-1, 2, *states.shape[2:]))
            arguments["packing"] = packing
            hooks.check_length(packing.longest, None, states.shape[3])
        return
    is_checkpointed = any(block.gradient_checkpointing and block.training for block in blocks_of(hooks.stack))
    if stored is None and not any(owners):
        if is_checkpointed:
            arguments["use_cache"], arguments["past_key_values"] = False, None
        return
    call.is_changed = True
    plan = cached_insertion(call, stored, owners, "prefixes")
    if plan is None:
        _start_text(hooks, call, None if is_checkpointed else cache, stores=not is_checkpointed)
        return
    continue_after(plan, call)


def check_placement(model: Any, name: str) -> None:
    """Check by a call that the stack of a multimodal model takes a prefix, and a mask into which it can be inserted.

    Args:
        model: model with the prefix.
        name: name of the adapter.

    Raises:
        MethodError: the model computes the masks of its layers itself, or fails with the prefix alone.
    """
    error = _error_of_call(model, frozenset({name}))
    reason = None
    if isinstance(error, MethodError):
        reason = "which computes the masks of its layers itself"
    # Otherwise it has no values on the meta device, or reads no text without an image.
    elif error is not None and _error_of_call(model, frozenset()) is None:
        reason = "whose layers fail with it"
    if reason is not None:
        raise MethodError(f"a prefix cannot be placed in {type(model).__name__}, {reason}; lora works on it") from error


def _error_of_call(model: Any, names: frozenset[str]) -> Exception | None:
    """Return the error of a call of a model with these adapters, or None."""
    ids = torch.zeros(2, 3, dtype=torch.long, device=model.device)
    mask = torch.tensor([[0, 1, 1]] * 2, device=model.device)  # with padding, since a mask of ones may be left out
    with torch.no_grad(), selection_of(model).use(ActiveAdapters([names])):
        try:
            model(input_ids=ids, attention_mask=mask)
        except (AttributeError, MethodError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return error
    return None


@contextmanager
def checkpointing_with_prefix(hooks: StackHooks, call: StackCall) -> Iterator[None]:
    """Let a stack that gives no cache to its checkpointed blocks (GPT-2) give them a prefix."""
    stack, flag = hooks.stack, "gradient_checkpointing"
    if not (isinstance(_self_attention_cache(call), PrefixCache) and vars(stack).get(flag)):
        yield
        return
    setattr(stack, flag, False)
    try:
        yield
    finally:
        setattr(stack, flag, True)


def restore_cache(call: StackCall, output: Any) -> Any:
    """Return the output of a stack with the cache of the caller, which contains the prefix now."""
    wrapped = _self_attention_cache(call)
    if not isinstance(wrapped, PrefixCache):
        return output
    if isinstance(output, tuple):
        return tuple(wrapped.result if item is call.arguments["past_key_values"] else item for item in output)
    if "past_key_values" in output:
        output["past_key_values"] = wrapped.result
    return output


def _start_text(hooks: StackHooks, call: StackCall, cache: Any, *, stores: bool) -> None:
    """Insert prefixes into a call that starts texts.

    Args:
        hooks: the stack that is called.
        call: the call.
        cache: cache of the caller, or None.
        stores: whether the cache stores keys and values for later calls.
    """
    arguments, inputs = call.arguments, call.inputs
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    is_plain = positions is None or positions.ndim == 2  # Qwen2-VL has positions in three dimensions
    if mask is None and positions is not None and is_plain and bool((torch.diff(positions) != 1).any()):
        raise MethodError("a prefix cannot go into packed sequences; pass each text as a batch element")
    owners, batch_size = active_prefix_owners(hooks), inputs.shape[0]
    start = inputs.new_zeros(batch_size, 1, dtype=torch.long)
    if mask is None and (len(owners) > 1 or hooks.role == "encoder"):
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    elif mask is not None:
        start = mask.ne(0).int().argmax(1, keepdim=True)
    states, used = _batch_states(hooks, batch_size)
    plan = InsertionPlan(start * used, used, owners)
    if mask is not None:
        arguments["attention_mask"] = mask = insert_columns(mask, plan, used)
        move_positions(arguments, plan)
    elif positions is not None:
        arguments["position_ids"] = positions + plan.count
    hooks.check_length(inputs.shape[1] + plan.count, mask, plan.count)
    uses_cache = arguments.get("use_cache")
    uses_cache = getattr(hooks.config, "use_cache", False) if uses_cache is None else uses_cache
    if stores and cache is None and uses_cache and hooks.role != "encoder":
        cache = DynamicCache(config=hooks.config)
        cache = EncoderDecoderCache(cache, DynamicCache(config=hooks.config)) if hooks.role == "target" else cache
    if not stores:
        arguments["use_cache"] = False
    elif hooks.role == "target":
        arguments["use_cache"] = (
            True  # Whisper gives its layers no cache otherwise; `restore_cache` returns the caller's
        )
    arguments["past_key_values"] = _wrapped_cache(hooks, cache, states, plan)


def _wrapped_cache(hooks: StackHooks, cache: Any, states: Tensor, plan: InsertionPlan) -> Any:
    """Return a cache that adds the prefix and, unless `cache` is None, stores keys and values in `cache`."""
    if cache is not None:
        store_cache_insertions(cache, prefix=plan)
    if hooks.role != "target":
        return PrefixCache(hooks.config, cache, cache, states, plan)
    if cache is None:
        both = EncoderDecoderCache(DynamicCache(), DynamicCache())
        both.cross_attention_cache = PassThroughCache(key_value_shape(hooks)[0])
        both.is_updated = NeverUpdated()
    else:
        both = copy.copy(cache)
    inner = None if cache is None else cache.self_attention_cache
    both.self_attention_cache = PrefixCache(hooks.config, inner, cache, states, plan)
    return both


def _batch_states(hooks: StackHooks, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the prefixes of the batch elements of a call, and which columns of them are used.

    Returns:
        Keys and values by turns, (2 x layers, batch, heads, count, head_dim), and 1 for used columns, (batch, count).
    """
    active, count = active_prefixes(hooks), max_prefix_length(hooks)
    distinct: list[list[Prefix]] = []
    for prefixes in active:
        if prefixes not in distinct:
            distinct.append(prefixes)
    device = next(prefix.embeddings.device for prefixes in active for prefix in prefixes)
    states = torch.stack([_concatenated(hooks, prefixes, count, device) for prefixes in distinct], dim=1)
    repeats = len(selection_of(hooks.model).active.expand(batch_size)) // len(active)
    indices = torch.tensor([distinct.index(prefixes) for prefixes in active], device=states.device)
    lengths = torch.tensor([sum(prefix.length for prefix in prefixes) for prefixes in active], device=states.device)
    used = torch.arange(count, device=states.device) >= count - lengths[:, None]
    if len(distinct) == 1:
        states = states.expand(-1, batch_size, -1, -1, -1)
    else:
        states = states.index_select(1, indices.repeat_interleave(repeats))
    return states, used.long().repeat_interleave(repeats, 0)


def _concatenated(hooks: StackHooks, prefixes: list[Prefix], count: int, device: torch.device) -> Tensor:
    """Return several prefixes one after the other, after zeros, (2 x layers, heads, count, head_dim)."""
    layers, heads, head_dim = key_value_shape(hooks)
    missing = count - sum(prefix.length for prefix in prefixes)
    zeros = torch.zeros(2 * layers, heads, missing, head_dim, device=device)
    return torch.cat([zeros, *(prefix.states() for prefix in prefixes)], dim=2)


def _self_attention_cache(call: StackCall) -> Any:
    """Return the cache of the tokens of a call, not that of the encoder's states."""
    cache = call.arguments.get("past_key_values")
    return getattr(cache, "self_attention_cache", cache)
