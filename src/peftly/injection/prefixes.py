"""Prefixes: trained keys and values in every layer, to which a stack attends as to tokens in front of the text.

`prefix_calls` inserts them into the calls of a stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.caching import cached
from peftly.injection.devices import device_of
from peftly.injection.insertion import InsertionPlan
from peftly.injection.layers import LAYER_ADAPTERS, LayerAdapter, add_layer_adapter, remove_layer_adapters
from peftly.injection.prefix_cache import PrefixCache
from peftly.injection.selection import ActiveAdapters, AdapterNames, selection_of

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = [
    "Prefix",
    "active_prefix_owners",
    "active_prefixes",
    "add_prefix",
    "drop_prefix",
    "has_prefixes",
    "key_value_shape",
    "max_prefix_length",
    "recorded_states",
]


class Prefix(LayerAdapter):
    """Keys and values of one adapter.

    Attributes:
        embeddings: trained keys and values, (count, layers x 2 x heads x head_dim), keys before values in each layer;
            or trained inputs of `encoder`. The name is that of PEFT's files.
        shape: number of layers, number of heads and head_dim.
        encoder: trained network that computes the keys and values, or None.
    """

    has_forward = False

    def __init__(self, embeddings: Tensor, shape: tuple[int, int, int], encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.float())
        self.shape = shape
        self.encoder = encoder

    @property
    def length(self) -> int:
        """Number of keys in each layer."""
        return self.embeddings.shape[0]

    def values(self) -> Tensor:
        """Return the keys and values as PEFT files have them, (count, layers x 2 x heads x head_dim)."""
        if self.encoder is None:
            return self.embeddings
        encoded: Tensor = self.encoder(self.embeddings)
        return encoded

    def states(self) -> Tensor:
        """Return the keys and values as layers have them, (2 x layers, heads, count, head_dim)."""
        layers, heads, head_dim = self.shape
        if self.encoder is None or self.training:
            values = self.values()
        else:
            values = cached((self, self.embeddings.dtype), self.embeddings.device, self.values)
        return values.view(-1, 2 * layers, heads, head_dim).permute(1, 2, 0, 3)


def key_value_shape(hooks: StackHooks) -> tuple[int, int, int]:
    """Return the number of layers of a stack, and the number of heads and head_dim of its keys.

    Raises:
        MethodError: the layers have different ones.
    """
    try:
        return _key_value_shape(hooks)
    except RuntimeError as error:  # of transformers, for a setting of each layer
        raise MethodError(
            f"a prefix needs keys and values of one size in every layer, and those of {type(hooks.model).__name__} "
            "differ; lora works on it"
        ) from error


def _key_value_shape(hooks: StackHooks) -> tuple[int, int, int]:
    config, is_target = hooks.config, hooks.role == "target"
    layer_names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers") if is_target else ("num_hidden_layers",)
    head_names = ("decoder_attention_heads", "num_attention_heads") if is_target else ("num_attention_heads",)
    heads = _first(config, head_names)
    head_dim = _first(config, ("head_dim", "d_kv")) or config.hidden_size // heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):  # Falcon
        return _first(config, layer_names), 1, head_dim
    return _first(config, layer_names), _first(config, ("num_key_value_heads",)) or heads, head_dim


def _first(config: Any, names: tuple[str, ...]) -> int:
    """Return the first of these numbers that a configuration has, or 0."""
    return int(next((value for name in names if (value := getattr(config, name, None))), 0))


def add_prefix(model: Any, name: str, prefix: Prefix) -> None:
    """Let every layer of `model` attend to the prefix of adapter `name`."""
    hooks: StackHooks = model._peftly.hooks.attending
    add_layer_adapter(model, hooks.stack, name, prefix)
    for block in blocks_of(hooks.stack):
        # transformers gives no cache to a checkpointed block, which may write to the cache twice. Ours is only read.
        block._can_checkpoint_with_cache = True


def drop_prefix(model: Any, name: str) -> None:
    """Undo `add_prefix`."""
    hooks: StackHooks = model._peftly.hooks.attending
    remove_layer_adapters(hooks.stack, name)
    if not has_prefixes(hooks):
        for block in blocks_of(hooks.stack):
            vars(block).pop("_can_checkpoint_with_cache", None)


def has_prefixes(hooks: StackHooks) -> bool:
    """Whether some adapter of a stack has a prefix, active or not."""
    return any(True for _ in _attached(hooks))


def active_prefixes(hooks: StackHooks) -> list[list[Prefix]]:
    """Return the active prefixes of each batch element, or of all, in the order of attachment."""
    attached = dict(_attached(hooks))
    sets = selection_of(hooks.model).active.sets
    return [[prefix for name, prefix in attached.items() if name in names] for names in sets]


def active_prefix_owners(hooks: StackHooks) -> tuple[AdapterNames, ...]:
    """Return the active adapters that have a prefix, for each batch element, or for all."""
    attached = frozenset(name for name, _ in _attached(hooks))
    return tuple(names & attached for names in selection_of(hooks.model).active.sets)


def max_prefix_length(hooks: StackHooks) -> int:
    """Return the largest number of active prefix keys of a batch element."""
    return max(sum(prefix.length for prefix in prefixes) for prefixes in active_prefixes(hooks))


def _attached(hooks: StackHooks) -> Iterator[tuple[str, Prefix]]:
    """Yield the adapters that have a prefix, in the order of attachment."""
    adapters = getattr(hooks.stack, LAYER_ADAPTERS, {})
    return ((name, adapter) for name, adapter in tuple(adapters.items()) if isinstance(adapter, Prefix))


def recorded_states(hooks: StackHooks, ids: Tensor) -> Tensor:
    """Return the keys and values of some tokens in the base without adapters, (2 x layers, heads, count, head_dim).

    The decoder behind an encoder attends to the same tokens in the encoder.

    Args:
        hooks: the stack that attends to prefixes.
        ids: token ids, (count,).

    Raises:
        MethodError: the model has no such keys and values, or reads more than tokens.
    """
    layers, heads, head_dim = key_value_shape(hooks)
    device = device_of(hooks.stack)
    ids = ids[None].to(device)
    no_prefix = torch.zeros(2 * layers, 1, heads, 0, head_dim, device=device)
    plan = InsertionPlan(ids.new_zeros(1, 0), ids.new_zeros(1, 0), (frozenset(),))
    recorded = DynamicCache()
    cache = PrefixCache(hooks.config, recorded, None, no_prefix, plan)
    try:
        with torch.no_grad(), selection_of(hooks.model).use(ActiveAdapters([frozenset()])):
            _call_with_cache(hooks, ids, cache)
        found = torch.stack([states[0] for layer in recorded.layers for states in (layer.keys, layer.values)])
        return found.reshape(2 * layers, heads, ids.shape[1], head_dim)  # fails where layers give none (Mllama)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise MethodError(
            "a prefix needs keys and values of one size in every layer, and a stack that can be called with tokens "
            f"alone; {type(hooks.model).__name__} has none (it raised {type(error).__name__}); lora works on it"
        ) from error


def _call_with_cache(hooks: StackHooks, ids: Tensor, cache: PrefixCache) -> None:
    """Call a stack with tokens, (1, count), and a cache for its keys and values."""
    if hooks.role != "target":
        hooks.stack(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
        return
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    both.self_attention_cache = cache
    source: StackHooks | None = hooks.model._peftly.hooks.text
    # Without an encoder of text the decoder reads the tokens alone: its layers leave out the cross-attention.
    states = None if source is None else source.stack(input_ids=ids).last_hidden_state
    hooks.stack(input_ids=ids, encoder_hidden_states=states, past_key_values=both)
