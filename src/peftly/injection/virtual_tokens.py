"""Virtual tokens: trained embeddings that a model reads as tokens of its input.

A virtual token is a token id past the last id of the input embedding. Every adapter has ids of its own, so batch
elements with different virtual tokens, or with none, share a batch. `virtual_token_calls` inserts the ids into the
calls of a stack and removes their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS, LayerAdapter, add_layer_adapter, remove_layer_adapters
from peftly.injection.modes import evaluation_mode
from peftly.injection.selection import AdapterNames, expand_to_batch, selection_of
from peftly.injection.text_stacks import embedding_in

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = [
    "Position",
    "VirtualTokens",
    "active_owners",
    "active_token_ids",
    "active_virtual_tokens",
    "add_virtual_tokens",
    "are_marked",
    "count_virtual_tokens",
    "drop_virtual_tokens",
    "embedding_of",
    "has_virtual_tokens",
    "max_virtual_tokens",
    "virtual_token_ids",
]

Position = Literal["front", "after_cls", "template"]
"""Position of virtual tokens: in front of the text, after its first token, or where its template marks them."""


class VirtualTokens(LayerAdapter):
    """Virtual tokens of one adapter. The embedding looks their ids up here.

    They enter after the embedding: a base that scales the output of its embedding (Gemma) does not scale them.

    Attributes:
        embeddings: trained embeddings, (count, width), or trained inputs of `encoder`.
        encoder: trained network that computes the embeddings, (count, width), or None.
        position: position of the virtual tokens in a text.
        first: number of virtual token ids of adapters that were attached before.
    """

    is_outermost: ClassVar[bool] = True  # no other adapter of the embedding knows the ids
    only_adds = True

    def __init__(self, embeddings: Tensor, encoder: nn.Module | None = None, *, position: Position = "front") -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.float())
        self.encoder = encoder
        self.position = position
        self.first = 0

    def values(self) -> Tensor:
        """Return the embeddings of the virtual tokens, (count, width)."""
        if self.encoder is None:
            return self.embeddings
        encoded: Tensor = self.encoder(self.embeddings)
        return encoded

    def values_for_use(self) -> Tensor:
        """Return `values` in evaluation mode, without the dropout of the encoder and without random numbers.

        An adapter is also saved in the middle of its training.
        """
        if self.encoder is None:
            return self.embeddings
        with evaluation_mode(self.encoder):
            return self.values()

    def ids(self, layer: Any) -> range:
        """Return the ids of the virtual tokens. They move when `resize_token_embeddings` resizes `layer`."""
        first = layer.weight.shape[0] + self.first
        return range(first, first + self.embeddings.shape[0])

    def offsets(self, marks: Sequence[int]) -> Sequence[int]:
        """Return the number of text tokens before each virtual token.

        Args:
            marks: number of text tokens before each virtual token that the template of the text marks.

        Raises:
            MethodError: the template marks another number of virtual tokens.
        """
        count = self.embeddings.shape[0]
        if self.position != "template":
            return [int(self.position == "after_cls")] * count
        if len(marks) != count:
            raise MethodError(f"a text has positions for {len(marks)} virtual tokens, and the adapter has {count}")
        return marks

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `LayerAdapter.run`."""
        ids = self.ids(layer)
        is_virtual = (x >= ids.start) & (x < ids.stop)
        embedded = inner(x.masked_fill(is_virtual, 0), *args, **kwargs)
        is_traced = torch.compiler.is_compiling()
        if not is_traced and (x.shape[-1] == 1 or not torch.is_grad_enabled()) and not bool(is_virtual.any()):
            return embedded  # a call that continues from a cache: the encoder would run in vain
        # F.embedding and not values[ids]: the backward of indexing adds in an order that varies with two threads.
        values = F.embedding((x - ids.start).clamp(0, len(ids) - 1), self.values())
        return torch.where(is_virtual[..., None], values.to(embedded.dtype), embedded)


def add_virtual_tokens(model: Any, name: str, virtual_tokens: VirtualTokens) -> None:
    """Insert the virtual tokens of adapter `name` into every text that a transformers model reads."""
    hooks: StackHooks = model._peftly.hooks.text
    virtual_tokens.first = max((other.first + other.embeddings.shape[0] for _, other in _attached(hooks)), default=0)
    add_layer_adapter(model, embedding_of(hooks), name, virtual_tokens)


def drop_virtual_tokens(model: Any, name: str) -> None:
    """Undo `add_virtual_tokens`."""
    remove_layer_adapters(embedding_of(model._peftly.hooks.text), name)


def embedding_of(hooks: StackHooks) -> Any:
    """Return the input embedding of a stack. T5's encoder and decoder have two modules that share their weights."""
    return embedding_in(hooks.stack)


def has_virtual_tokens(hooks: StackHooks) -> bool:
    """Whether some adapter of a stack has virtual tokens, active or not."""
    return any(True for _ in _attached(hooks))


def active_virtual_tokens(hooks: StackHooks) -> list[list[VirtualTokens]]:
    """Return the active virtual tokens of each batch element, or of all, in the order of attachment."""
    attached = dict(_attached(hooks))
    sets = selection_of(hooks.model).active.sets
    return [[virtual_tokens for name, virtual_tokens in attached.items() if name in names] for names in sets]


def active_owners(hooks: StackHooks) -> tuple[AdapterNames, ...]:
    """Return the active adapters that have virtual tokens, for each batch element, or for all."""
    attached = frozenset(name for name, _ in _attached(hooks))
    return tuple(names & attached for names in selection_of(hooks.model).active.sets)


def count_virtual_tokens(virtual_tokens: Sequence[VirtualTokens]) -> int:
    """Return the number of virtual tokens of several adapters."""
    return sum(adapter.embeddings.shape[0] for adapter in virtual_tokens)


def max_virtual_tokens(hooks: StackHooks) -> int:
    """Return the largest number of active virtual tokens of a batch element."""
    return max(map(count_virtual_tokens, active_virtual_tokens(hooks)))


def are_marked(active: Sequence[list[VirtualTokens]]) -> bool:
    """Whether a template marks the positions of some of these virtual tokens."""
    return any(adapter.position == "template" for virtual_tokens in active for adapter in virtual_tokens)


def virtual_token_ids(model: Any, batch_size: int) -> Sequence[list[tuple[int, int]]]:
    """Return the virtual tokens of each batch element of a call of an adapted model; see `active_token_ids`."""
    hooks = model._peftly.hooks
    if hooks is None or hooks.text is None:
        return [[]] * batch_size
    return expand_to_batch(active_token_ids(hooks.text, batch_size), batch_size, "virtual tokens")


def active_token_ids(hooks: StackHooks, batch_size: int) -> list[list[tuple[int, int]]]:
    """Return the ids of the active virtual tokens of each batch element, or of all, ordered by offset.

    Returns:
        Pairs of the id of a virtual token and its offset, which is the number of text tokens before it.

    Raises:
        MethodError: the active adapters or the prompt positions are those of another batch, or the positions that a
            template marks are unknown.
    """
    selection, embedding, active = selection_of(hooks.model), embedding_of(hooks), active_virtual_tokens(hooks)
    selection.active.expand(batch_size)  # raises for another batch
    marks: list[tuple[int, ...]] = [()] * len(active)
    if are_marked(active):
        if selection.prompt_positions is None:
            raise MethodError(
                "a template marks the positions of the virtual tokens, and this call has no positions; pass "
                "peftly.generate what RowFormat.format_prompt returns for a row (on the command line: --text instead "
                "of --prompt), or call the model inside peftly.use_prompt_positions(model, positions)"
            )
        active = list(expand_to_batch(active, batch_size, "adapters"))
        marks = list(expand_to_batch(selection.prompt_positions, batch_size, "prompt positions"))
    tokens = []
    for virtual_tokens, own_marks in zip(active, marks, strict=True):
        pairs = [
            pair
            for adapter in virtual_tokens
            for pair in zip(adapter.ids(embedding), adapter.offsets(own_marks), strict=True)
        ]
        tokens.append(sorted(pairs, key=lambda pair: pair[1]))
    return tokens


def _attached(hooks: StackHooks) -> Iterator[tuple[str, VirtualTokens]]:
    """Yield the adapters that have virtual tokens, in the order of attachment."""
    adapters = getattr(embedding_of(hooks), LAYER_ADAPTERS, {})
    return ((name, adapter) for name, adapter in tuple(adapters.items()) if isinstance(adapter, VirtualTokens))
