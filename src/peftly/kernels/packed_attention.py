"""Attention over packed rows: examples laid end to end, each attending to itself and to what all of them share.

One row holds the columns that every example has in front (a soft prompt, a system message), once, and then the examples
one behind the other. Everything but attention works on columns alone, so nothing is computed for padding, and what is
shared is computed once a batch. Here only queries, keys and values are spread over a row for each example, which the
kernels need.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftly.errors import MethodError
from peftly.kernels.short_attention import is_short, short_attention

__all__ = ["IMPLEMENTATION", "Packing", "no_mask", "packed", "packed_attention", "packs"]

IMPLEMENTATION = "peftly_packed"
"""What the attention below is called in transformers' registries."""


class Packing:
    """How the columns of a packed row are made up.

    Attributes:
        lengths: columns of each example, without those that are shared.
        shared: columns in front that every example attends to.
        states: keys and values in front of those, (layers, 2, heads, count, head_dim); None: none.
    """

    def __init__(self, lengths: Sequence[int], *, shared: int = 0, states: Tensor | None = None) -> None:
        self.lengths, self.shared, self.states = tuple(lengths), shared, states
        self._places: Tensor | None = None

    def places(self, device: torch.device) -> Tensor:
        """Return where the columns behind the shared ones are among those of padded rows, (columns,).

        Such a row for each example has its columns first; all rows are as long as the longest, and lie end to end.
        """
        if self._places is None or self._places.device != device:
            real = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
            self._places = real.flatten().nonzero().squeeze(1).to(device)
        return self._places

    @property
    def in_front(self) -> int:
        """How many keys every example sees in front of its own."""
        return self.shared + (0 if self.states is None else self.states.shape[3])

    @property
    def longest(self) -> int:
        """How many positions the longest example has, with what stands in front of it."""
        return self.in_front + max(self.lengths)

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of every column in its own example, (1, columns)."""
        first = self.in_front - self.shared
        own = [torch.arange(self.in_front, self.in_front + length) for length in self.lengths]
        return torch.cat([torch.arange(first, self.in_front), *own])[None].to(device)

    def with_states(self, states: Tensor) -> Packing:
        """Return the packing of the same columns behind keys and values that are given, as in `states`."""
        return Packing(self.lengths, shared=self.shared, states=states)


@dataclass(frozen=True)
class _Scoring:
    """How a layer scores keys.

    Attributes:
        scaling: of the products.
        dropout: of the weights.
        causal: whether a column sees what comes before it only.
        window: how many columns a column sees at most on either side, itself included; None: all.
        softcap: where the scores level off; None: nowhere.
        sinks: (heads,), scores of a column that has no value (attention sinks); None: there is none.
    """

    scaling: float
    dropout: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Tensor | None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each example of a packed row; without `packing` do what transformers' SDPA attention does.

    Args:
        module: the layer that asks.
        query: (1, heads, columns, head_dim).
        key, value: (1, key heads, columns, head_dim).
        attention_mask: `no_mask`, or what a model made of it.
        scaling: of the scores; None: 1 / sqrt(head_dim).
        dropout: of the weights.
        packing: what stands where; it goes through the model as a keyword argument of the call.
        is_causal: see `_Scoring.causal`; None: as `module` is.
        sliding_window: see `_Scoring.window`.
        softcap: see `_Scoring`.
        s_aux: see `_Scoring.sinks`.
        others: what else a model says.

    Returns:
        (1, columns, heads, head_dim), and no weights.

    Raises:
        MethodError: the call is not what `packing` says, or asks for what is not done here.
    """
    if packing is None:
        others |= {"is_causal": is_causal, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        usual = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return cast(tuple[Tensor, None], usual)
    _refuse(query, attention_mask, packing, others)
    if sliding_window is None and _has_a_window(module):
        raise MethodError(f"{type(module).__name__} does not say how wide its window is; train with packing: false")
    scoring = _Scoring(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    outputs = []
    front = [] if packing.states is None else [state[None] for state in packing.states[cast(int, module.layer_idx)]]
    if cut := packing.shared:
        first, *shared = (states[:, :, :cut] for states in (query, key, value))
        found = _attend(first, shared, front, query.new_tensor([cut], dtype=torch.long), scoring)
        outputs.append(found[0].transpose(0, 1))
        front = [torch.cat(both, 2) for both in zip(front, shared, strict=True)] if front else shared
    own = [_spread(states[0, :, cut:], packing) for states in (query, key, value)]
    found = _attend(own[0], own[1:], front, torch.tensor(packing.lengths, device=query.device), scoring)
    outputs.append(found.transpose(1, 2).flatten(0, 1).index_select(0, packing.places(query.device)))
    return torch.cat(outputs)[None], None


def _spread(states: Tensor, packing: Packing) -> Tensor:
    """Return (heads, columns, head_dim) as (examples, heads, longest, head_dim), zero behind an example's end."""
    rows, longest = len(packing.lengths), max(packing.lengths)
    columns = states.transpose(0, 1)
    # Zero, and not any column: nothing of one example, were it not a number, may reach another.
    padded = columns.new_zeros(rows * longest, *columns.shape[1:]).index_copy(0, packing.places(states.device), columns)
    return padded.view(rows, longest, *columns.shape[1:]).transpose(1, 2)


def _attend(
    query: Tensor, own: Sequence[Tensor], front: Sequence[Tensor], lengths: Tensor, scoring: _Scoring
) -> Tensor:
    """Attend within each row, whose real columns come first, and to `front`, which comes before them.

    Args:
        query: (rows, heads, longest, head_dim).
        own: keys and values, (rows, key heads, longest, head_dim).
        front: keys and values that all rows see, (1, key heads, count, head_dim); or nothing.
        lengths: real columns of each row, (rows,).
        scoring: how the layer does it.
    """
    key, value = own
    count = 0
    if front:
        key, value = (
            torch.cat([shared.to(states.dtype).expand(len(states), -1, -1, -1), states], 2)
            for shared, states in zip(front, own, strict=True)
        )
        count = front[0].shape[2]
    plain = scoring.softcap is None and scoring.sinks is None
    if plain and not scoring.dropout and is_short(query, key):
        seen = _mask(lengths, query.shape[2], count, scoring)
        return short_attention(query, key, value, seen, scoring.scaling)
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    if plain and scoring.causal and scoring.window is None and not count:
        # What is behind a row's end is seen from there only.
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=scoring.dropout, is_causal=True, scale=scoring.scaling
        )
    mask = _mask(lengths, query.shape[2], count, scoring)
    if plain:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=scoring.dropout, scale=scoring.scaling)
    return _attend_by_hand(query, key, value, mask, scoring)


def _attend_by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scoring: _Scoring) -> Tensor:
    """Do what no fused kernel does: cap the scores, and let sinks have a share of the weights."""
    scores = (query @ key.transpose(2, 3)) * scoring.scaling
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype).view(1, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], 3)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return F.dropout(weights[..., : key.shape[2]], scoring.dropout) @ value


def _mask(lengths: Tensor, longest: int, count: int, scoring: _Scoring) -> Tensor:
    """Return which keys a query sees, (rows or 1, 1, longest or 1, count + longest)."""
    keys = torch.arange(count + longest, device=lengths.device)
    queries = torch.arange(count, count + longest, device=lengths.device)[:, None]
    if scoring.causal:
        seen = keys <= queries
        return (seen if scoring.window is None else seen & (keys > queries - scoring.window))[None, None]
    seen = (keys < count + lengths[:, None])[:, None]
    if scoring.window is not None:
        seen = seen & ((keys - queries).abs() < scoring.window)
    return seen[:, None]


def packs(model: Any) -> bool:
    """Whether a model's rows may be packed: its attention is found by name, and nothing else mixes columns.

    A model that is opened with another attention than transformers' usual one (SDPA) keeps that.
    """
    if model.config.is_encoder_decoder or not getattr(model, "_supports_attention_backend", False):
        return False
    config, body = model.config.get_text_config(decoder=True), model.get_decoder()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Chunks are known to masks only; convolutions and states that run along a row know of no examples at all.
    mixes = getattr(model, "_is_stateful", False) or any(isinstance(part, nn.Conv1d) for part in body.modules())
    takes = inspect.signature(body.forward).parameters
    # ALBERT's pooler is a layer that gets the first column of what it takes for the batch.
    return (
        config._attn_implementation == "sdpa"
        and {"position_ids", "kwargs"} <= takes.keys()
        and not isinstance(getattr(body, "pooler", None), nn.Linear)
        and kinds <= {"full_attention", "sliding_attention"}
        and not mixes
    )


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Let a model that `packs` attend within the examples of packed rows; other calls are as they were."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def no_mask(device: torch.device) -> Tensor:
    """Return what a packed call has in place of a mask: four dimensions, so that models hand it on as it is."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def _refuse(query: Tensor, attention_mask: Tensor | None, packing: Packing, others: dict[str, Any]) -> None:
    """Refuse a call that is not what `packing` says, or that asks for what is not done here."""
    columns = packing.shared + sum(packing.lengths)
    if query.shape[0] != 1 or query.shape[2] != columns:
        raise MethodError(
            f"a packed call has one row of {columns} columns here, and this layer got {tuple(query.shape)}"
        )
    if attention_mask is not None and attention_mask.shape[-1]:
        raise MethodError("a packed call has no mask, and this model made one; train with packing: false")
    unknown = [name for name, value in others.items() if name not in _HARMLESS and value is not None]
    if unknown:
        raise MethodError(f"packed attention does not know {', '.join(unknown)}; train with packing: false")


_HARMLESS = frozenset({"deterministic", "position_ids", "use_cache"})
"""What models pass on that changes nothing here."""


def _has_a_window(module: Any) -> bool:
    """Whether a layer's configuration gives it a window, which models may say in a mask only."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return bool(kinds[module.layer_idx] == "sliding_attention")
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
