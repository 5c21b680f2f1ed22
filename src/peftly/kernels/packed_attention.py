"""Attention over packed sequences: examples side by side, each attending to itself and to a common prefix.

A packed sequence has the columns that all examples begin with (a soft prompt, a system message) once, and then the
other columns of each example. Everything but attention works on single columns, so nothing is computed for padding, and
the common prefix is computed once a batch. Only here queries, keys and values are padded to (examples, longest), which
the attention kernels need.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftly.errors import MethodError
from peftly.kernels.short_attention import is_short, short_attention

__all__ = [
    "IMPLEMENTATION",
    "Packing",
    "no_mask",
    "packed_attention",
    "supports_packing",
    "use_packed_attention",
]

IMPLEMENTATION = "peftly_packed"
"""Name of `packed_attention` in the registries of transformers."""


class Packing:
    """Layout of a packed sequence.

    Attributes:
        lengths: number of columns of each example, without the shared ones.
        shared: number of columns in front that belong to every example.
        states: keys and values in front of the sequence, (layers, 2, heads, count, head_dim); None: there are none.
    """

    def __init__(self, lengths: Sequence[int], *, shared: int = 0, states: Tensor | None = None) -> None:
        self.lengths, self.shared, self.states = tuple(lengths), shared, states
        self._padded_indices: Tensor | None = None

    @property
    def num_columns(self) -> int:
        """Number of columns of the sequence."""
        return self.shared + sum(self.lengths)

    @property
    def num_in_front(self) -> int:
        """Number of keys that every example attends to in front of its own."""
        return self.shared + (0 if self.states is None else self.states.shape[3])

    @property
    def longest(self) -> int:
        """Number of positions of the longest example, including those in front."""
        return self.num_in_front + max(self.lengths)

    def padded_indices(self, device: torch.device) -> Tensor:
        """Return the indices of the columns after the shared ones in flattened (examples, longest), (columns,).

        The columns of each example come first in its padded sequence.
        """
        if self._padded_indices is None or self._padded_indices.device != device:
            is_column = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
            self._padded_indices = is_column.flatten().nonzero().squeeze(1).to(device)
        return self._padded_indices

    def token_indices(self) -> list[Tensor]:
        """Return the columns of each example, the shared ones included, (tokens,) each."""
        shared, start, indices = torch.arange(self.shared), self.shared, []
        for length in self.lengths:
            indices.append(torch.cat([shared, torch.arange(start, start + length)]))
            start += length
        return indices

    def positions(self, device: torch.device) -> Tensor:
        """Return the position of every column in its own example, (1, columns)."""
        first = self.num_in_front - self.shared
        own = [torch.arange(self.num_in_front, self.num_in_front + length) for length in self.lengths]
        return torch.cat([torch.arange(first, self.num_in_front), *own])[None].to(device)

    def with_states(self, states: Tensor) -> Self:
        """Return the layout of the same sequence after these keys and values, shaped as `states`."""
        packing = copy(self)
        packing.states = states
        return packing


@dataclass(frozen=True)
class _Scoring:
    """How a layer computes attention weights.

    Attributes:
        scaling: factor of the scores.
        dropout: dropout of the weights.
        causal: whether a query attends to columns up to its own only.
        window: largest number of columns that a query attends to on either side, its own included; None: all.
        softcap: bound of the scores (soft-capping); None: no bound.
        sinks: scores of a column without a value (attention sinks), (heads,); None: there is none.
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
    """Attend within each example of a packed sequence; without `packing`, compute transformers' SDPA attention.

    Args:
        module: attention layer of the model.
        query: (1, heads, columns, head_dim).
        key, value: (1, key heads, columns, head_dim).
        attention_mask: `no_mask`, or the mask that the model made of it.
        scaling: factor of the scores; None: 1 / sqrt(head_dim).
        dropout: dropout of the weights.
        packing: layout of the sequence; a keyword argument of the model's call.
        is_causal: see `_Scoring.causal`; None: attribute of `module`.
        sliding_window: see `_Scoring.window`.
        softcap: see `_Scoring`.
        s_aux: see `_Scoring.sinks`.
        others: other arguments of transformers' attention functions.

    Returns:
        Outputs, (1, columns, heads, head_dim), and no weights.

    Raises:
        MethodError: the call does not fit `packing`, or has an argument that is not supported with packing.
    """
    if packing is None:
        others |= {"is_causal": is_causal, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        outputs_and_weights = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return cast(tuple[Tensor, None], outputs_and_weights)
    _check(query, attention_mask, packing, others)
    if sliding_window is None and _has_window(module):
        raise MethodError(f"{type(module).__name__} does not pass the width of its window; train with packing: false")
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
    if shared := packing.shared:
        shared_query, *shared_states = (states[:, :, :shared] for states in (query, key, value))
        length = query.new_tensor([shared], dtype=torch.long)
        outputs.append(_attend(shared_query, shared_states, front, length, scoring)[0].transpose(0, 1))
        front = [torch.cat(both, 2) for both in zip(front, shared_states, strict=True)] if front else shared_states
    own_query, *own_states = (_pad(states[0, :, shared:], packing) for states in (query, key, value))
    padded = _attend(own_query, own_states, front, torch.tensor(packing.lengths, device=query.device), scoring)
    outputs.append(padded.transpose(1, 2).flatten(0, 1).index_select(0, packing.padded_indices(query.device)))
    return torch.cat(outputs)[None], None


def _pad(states: Tensor, packing: Packing) -> Tensor:
    """Return (heads, columns, head_dim) as (examples, heads, longest, head_dim), with zeros as padding."""
    count, longest = len(packing.lengths), max(packing.lengths)
    columns = states.transpose(0, 1)
    # Zeros, not arbitrary columns: a NaN of one example must not reach another.
    padded = columns.new_zeros(count * longest, *columns.shape[1:])
    padded = padded.index_copy(0, packing.padded_indices(states.device), columns)
    return padded.view(count, longest, *columns.shape[1:]).transpose(1, 2)


def _attend(
    query: Tensor, own: Sequence[Tensor], front: Sequence[Tensor], lengths: Tensor, scoring: _Scoring
) -> Tensor:
    """Attend within each example, padded on the right, and to the keys in front of it.

    Args:
        query: (examples, heads, longest, head_dim).
        own: keys and values, (examples, key heads, longest, head_dim).
        front: keys and values that all examples attend to, (1, key heads, count, head_dim); or nothing.
        lengths: number of columns of each example, (examples,).
        scoring: computation of the weights.

    Returns:
        (examples, heads, longest, head_dim), with any values at padding.
    """
    key, value = own
    count = 0
    if front:
        key, value = (
            torch.cat([shared.to(states.dtype).expand(len(states), -1, -1, -1), states], 2)
            for shared, states in zip(front, own, strict=True)
        )
        count = front[0].shape[2]
    is_plain = scoring.softcap is None and scoring.sinks is None
    if is_plain and not scoring.dropout and is_short(query, key):
        mask = _mask(lengths, query.shape[2], count, scoring)
        return short_attention(query, key, value, mask, scoring.scaling)
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    if is_plain and scoring.causal and scoring.window is None and not count:
        # Only padding attends to padding here, and its outputs are dropped.
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=scoring.dropout, is_causal=True, scale=scoring.scaling
        )
    mask = _mask(lengths, query.shape[2], count, scoring)
    if is_plain:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=scoring.dropout, scale=scoring.scaling)
    return _attend_without_kernel(query, key, value, mask, scoring)


def _attend_without_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scoring: _Scoring) -> Tensor:
    """Attend with soft-capped scores and attention sinks, which no fused kernel supports."""
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
    """Return True where a query attends to a key, (examples or 1, 1, longest or 1, count + longest)."""
    keys = torch.arange(count + longest, device=lengths.device)
    queries = torch.arange(count, count + longest, device=lengths.device)[:, None]
    if scoring.causal:
        mask = keys <= queries
        return (mask if scoring.window is None else mask & (keys > queries - scoring.window))[None, None]
    mask = (keys < count + lengths[:, None])[:, None]
    if scoring.window is not None:
        mask = mask & ((keys - queries).abs() < scoring.window)
    return mask[:, None]


def supports_packing(model: Any) -> bool:
    """Return whether packed examples stay separate in a model.

    They do if its attention can be replaced and nothing else mixes the columns of a sequence. A model that was opened
    with another attention than transformers' default (SDPA) keeps that attention.
    """
    if model.config.is_encoder_decoder or not getattr(model, "_supports_attention_backend", False):
        return False
    config, stack = model.config.get_text_config(decoder=True), model.get_decoder()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Chunked attention is visible in masks only; convolutions and recurrent states mix the columns of a sequence.
    mixes_columns = getattr(model, "_is_stateful", False) or any(isinstance(m, nn.Conv1d) for m in stack.modules())
    parameters = inspect.signature(stack.forward).parameters
    # ALBERT's pooler is a bare linear layer, whose input is already the first column of a batch.
    return (
        config._attn_implementation == "sdpa"
        and {"position_ids", "kwargs"} <= parameters.keys()
        and not isinstance(getattr(stack, "pooler", None), nn.Linear)
        and layer_types <= {"full_attention", "sliding_attention"}
        and not mixes_columns
    )


@contextmanager
def use_packed_attention(model: Any) -> Iterator[None]:
    """Replace the attention of a model that `supports_packing` by `packed_attention`; unpacked calls are unchanged."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def no_mask(device: torch.device) -> Tensor:
    """Return the attention mask of a packed call: empty, with four dimensions, so that models pass it on unchanged."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def _check(query: Tensor, attention_mask: Tensor | None, packing: Packing, others: dict[str, Any]) -> None:
    """Refuse a call that does not fit `packing`, or has an argument that is not supported."""
    if query.shape[0] != 1 or query.shape[2] != packing.num_columns:
        raise MethodError(
            f"a packed call has one sequence of {packing.num_columns} columns here, and this layer got "
            f"{tuple(query.shape)}"
        )
    if attention_mask is not None and attention_mask.shape[-1]:
        raise MethodError("a packed call has no mask, and this model made one; train with packing: false")
    unknown = [name for name, value in others.items() if name not in _IGNORED_ARGUMENTS and value is not None]
    if unknown:
        raise MethodError(f"packed attention does not support {', '.join(unknown)}; train with packing: false")


_IGNORED_ARGUMENTS = frozenset({"deterministic", "position_ids", "use_cache"})
"""Arguments of models' calls that make no difference to a packed call."""


def _has_window(module: Any) -> bool:
    """Return whether the configuration gives a layer a window, which some models apply in the mask only."""
    config = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return bool(layer_types[module.layer_idx] == "sliding_attention")
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
