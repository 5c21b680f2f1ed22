"""Keys and values of a soft prompt in every layer, computed once inside `cache_adapter_tensors`.

In front of a text, in a decoder, they do not depend on the text. A call that fills an empty cache without gradients
inserts them as it would insert a prefix, so that only the text goes through the layers. The cache ends up the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peftly.injection.caching import cached, is_caching
from peftly.injection.insertion import InsertionPlan
from peftly.injection.prefix_cache import PrefixCache
from peftly.injection.prefixes import max_prefix_length
from peftly.injection.selection import selection_of

if TYPE_CHECKING:
    from peftly.injection.stack_calls import StackCall
    from peftly.injection.stack_hooks import StackHooks
    from peftly.injection.virtual_tokens import VirtualTokens

__all__ = ["cache_with_prompt", "prompt_states"]

_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Layers whose keys and values belong to one token each."""


def prompt_states(hooks: StackHooks, call: StackCall, active: Sequence[Sequence[VirtualTokens]]) -> list[Tensor] | None:
    """Return the keys and values of the virtual tokens of a call, or None if the call has to compute them itself.

    Args:
        hooks: the stack that is called.
        call: a call that starts texts.
        active: active virtual tokens of each batch element, or of all.

    Returns:
        Keys and values by turns, layer by layer, each (1, heads, count, head_dim).
    """
    if not is_caching() or len(active) != 1 or not active[0] or not _is_cacheable(hooks, call, active[0]):
        return None
    ids = call.arguments["input_ids"]
    names = selection_of(hooks.model).active.sets[0]
    key = (hooks, *active[0], names, hooks.stack.dtype, hooks.config._attn_implementation)
    return cached(key, ids.device, lambda: _compute(hooks, ids))


def cache_with_prompt(hooks: StackHooks, cache: Any, states: list[Tensor], plan: InsertionPlan) -> PrefixCache:
    """Return a cache for one call that inserts the keys and values of a prompt into `cache`."""
    batch_size = plan.before.shape[0]
    return PrefixCache(hooks.config, cache, cache, [state.expand(batch_size, -1, -1, -1) for state in states], plan)


def _is_cacheable(hooks: StackHooks, call: StackCall, virtual_tokens: Sequence[VirtualTokens]) -> bool:
    cache: Any = call.arguments.get("past_key_values")
    return (
        hooks.role == "decoder"
        and call.arguments.get("input_ids") is not None
        and call.arguments["input_ids"].shape[1] > 0  # otherwise it is the call of `_compute`
        and call.arguments.get("token_type_ids") is None
        and all(adapter.position == "front" for adapter in virtual_tokens)
        and not max_prefix_length(hooks)  # virtual tokens attend to a prefix
        and type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and _caches_single_tokens(hooks)
        # Dropout draws again in each call.
        and not any(module.training for module in hooks.stack.modules())
    )


def _caches_single_tokens(hooks: StackHooks) -> bool:
    """Whether the keys and values of a token do not depend on later tokens, nor on the length of the text."""
    types = set(getattr(hooks.config, "layer_types", None) or _LAYER_TYPES)
    # Rope parameters are one dictionary, or one for each type of layer. "longrope" rotates all keys by the text length.
    is_long = "longrope" in str(getattr(hooks.config, "rope_parameters", None))
    is_stateful = getattr(hooks.model, "_is_stateful", False)
    return types <= _LAYER_TYPES and not (is_long or is_stateful or getattr(hooks.config, "num_kv_shared_layers", 0))


def _compute(hooks: StackHooks, ids: Tensor) -> list[Tensor]:
    cache = DynamicCache()  # without the windows of sliding layers, which would drop states
    hooks.stack(input_ids=ids[:1, :0], past_key_values=cache, use_cache=True)
    return [states for layer in cache.layers for states in (layer.keys, layer.values)]
