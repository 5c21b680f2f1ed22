"""A soft prompt's keys and values in every layer, computed once for all calls that write text.

In front of a text, in a decoder, they do not depend on the text. A call that fills an empty cache without gradients
takes them as it would take a prefix, so that only the text goes through the layers; what stands in the cache in the end
is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peftly.injection import prefixes
from peftly.injection.insertion import InsertionPlan
from peftly.injection.prefix_cache import PrefixCache
from peftly.injection.selection import selection_of

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks
    from peftly.injection.virtual_tokens import VirtualTokens

__all__ = ["cache_with_prompt", "prompt_states"]

_KINDS = {"full_attention", "sliding_attention"}
"""Layers whose keys and values are those of the words, one by one."""


def prompt_states(
    body: StackHooks, call: dict[str, Any], prompts: Sequence[Sequence[VirtualTokens]]
) -> list[Tensor] | None:
    """Return the keys and values of the virtual tokens of a call, or None if the call has to compute them itself.

    Args:
        body: whose call it is.
        call: its arguments; it starts a text.
        prompts: what has virtual tokens in each row, or in all.

    Returns:
        Keys and values by turns, layer by layer, each (1, heads, count, width).
    """
    if len(prompts) != 1 or not prompts[0] or not _fits(body, call, prompts[0]):
        return None
    names = selection_of(body.model).rows.sets[0]
    facts = (names, body.config._attn_implementation)
    return prompts[0][0].kept.get(body.module, facts, lambda: _computed(body, call["input_ids"]))


def cache_with_prompt(body: StackHooks, cache: Any, states: list[Tensor], slots: InsertionPlan) -> PrefixCache:
    """Return a cache for one call that puts a prompt's keys and values into `slots` of `cache`."""
    batch = slots.at.shape[0]
    return PrefixCache(body.config, cache, cache, [state.expand(batch, -1, -1, -1) for state in states], slots)


def _fits(body: StackHooks, call: dict[str, Any], prompts: Sequence[VirtualTokens]) -> bool:
    cache = cast(Any, call.get("past_key_values"))
    return (
        body.role == "decoder"
        and call["input_ids"].shape[1] > 0  # else it is the call that computes them
        and call.get("token_type_ids") is None
        and all(prompt.position == "front" for prompt in prompts)
        and not prefixes.chosen_count(body)  # their words would attend to it
        and type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and _is_word_by_word(body)
    )


def _is_word_by_word(body: StackHooks) -> bool:
    """Whether a stack's keys and values are the words' own, whatever comes after them."""
    kinds = set(getattr(body.config, "layer_types", None) or _KINDS)
    # One, or one for each kind of layer. This one turns all keys by the length of the whole text.
    is_long = "longrope" in str(getattr(body.config, "rope_parameters", None))
    is_stateful = getattr(body.model, "_is_stateful", False)
    return kinds <= _KINDS and not (is_long or is_stateful or getattr(body.config, "num_kv_shared_layers", 0))


def _computed(body: StackHooks, ids: Tensor) -> list[Tensor]:
    cache = DynamicCache()  # without the windows of some layers, which would forget
    body.module(input_ids=ids[:1, :0], past_key_values=cache, use_cache=True)
    return [half for layer in cache.layers for half in (layer.keys, layer.values)]
