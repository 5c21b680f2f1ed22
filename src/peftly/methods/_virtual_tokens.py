"""Virtual tokens: trained rows that a model reads as if they were words of its input.

A virtual token is a token id past the last row of the input embedding. Such ids enter the sequence inside the model's
body (`model.get_decoder()`), after each row's padding, and leave it there again: heads, losses, `generate` and every
caller see the text only. PEFT puts its rows in front of the padding instead, which makes an example's loss depend on
the batch it is in.

Every adapter has ids of its own, so rows with different virtual tokens, or with none, share a batch. What a call needs
to remember (where they went) rides on its own tensors and cache, never on the hooks, so calls from several threads,
copies and pickles of the model do not disturb each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.methods._layers import (
    CHANGES,
    LayerChange,
    add_change,
    drop_changes,
    override_method,
    restore_method,
)
from peftly.methods._positions import positions_of
from peftly.methods._selection import Names, Rows, selection_of

__all__ = ["Slots", "VirtualRows", "VirtualTokens", "add_virtual_tokens", "drop_virtual_tokens", "insert"]


@dataclass(frozen=True)
class Slots:
    """The virtual tokens of a call, every row's own. Rows that have fewer than others have empty slots in front.

    Attributes:
        ids: what is inserted, (batch, count).
        at: the column of the text that each stands in front of, (batch, count), not falling along a row.
        used: 0 for empty slots, which the attention mask hides, (batch, count).
        owners: the adapters that they are of, row by row; one entry if it is the same for all.
    """

    ids: Tensor
    at: Tensor
    used: Tensor
    owners: tuple[Names, ...]

    @property
    def count(self) -> int:
        """How much longer each row gets."""
        return self.ids.shape[1]

    def select(self, rows: Tensor) -> Self:
        """Return the slots of some rows, which may repeat."""
        rows = rows.to(self.ids.device)
        return type(self)(self.ids[rows], self.at[rows], self.used[rows], self.owners)

    def repeat_to(self, batch: int) -> Self:
        """Return the slots of `batch` rows, where beams repeat each row in place."""
        rows = torch.arange(self.ids.shape[0], device=self.ids.device)
        return self.select(rows.repeat_interleave(batch // self.ids.shape[0]))


def insert(x: Tensor, at: Tensor, fill: Tensor) -> Tensor:
    """Put values into every row of `x` at columns of that row's own.

    Args:
        x: (batch, length).
        at: the column that each value stands in front of, (batch, count), not falling along a row.
        fill: (batch, count).

    Returns:
        (batch, length + count).
    """
    longer = x.new_empty(x.shape[0], x.shape[1] + at.shape[1])
    longer.scatter_(1, text_columns(at, x.shape[1]), x)
    return longer.scatter_(1, at + torch.arange(at.shape[1], device=at.device), fill.to(x.dtype))


def text_columns(at: Tensor, length: int) -> Tensor:
    """Return where `insert` puts each of the `length` old columns, (batch, length)."""
    column = torch.arange(length, device=at.device).expand(at.shape[0], -1)
    return column + torch.searchsorted(at.contiguous(), column.contiguous(), right=True)


def insert_packed(ids: Tensor, positions: Tensor, virtual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put `virtual` in front of every example of one packed row, whose positions restart at each example.

    Args:
        ids, positions: (1, length).
        virtual: (count,).

    Returns:
        The longer ids and positions, and the new column of each old one, each (1, ...).
    """
    count = virtual.shape[0]
    starts = torch.diff(positions, prepend=positions[:, :1] - 2) != 1
    examples = int(starts.sum())
    columns = torch.arange(ids.shape[1], device=ids.device) + count * starts.cumsum(1)
    is_text = torch.zeros(1, ids.shape[1] + count * examples, dtype=torch.bool, device=ids.device)
    is_text.scatter_(1, columns, True)
    longer_ids, longer_positions = ids.new_empty(is_text.shape), positions.new_empty(is_text.shape)
    longer_ids[~is_text] = virtual.to(ids.dtype).repeat(examples)
    longer_positions[~is_text] = torch.arange(count, device=ids.device, dtype=positions.dtype).repeat(examples)
    return longer_ids.scatter_(1, columns, ids), longer_positions.scatter_(1, columns, positions + count), columns


class VirtualRows(LayerChange):
    """The trained rows of one adapter, looked up by the embedding for ids of the adapter's own past its last row.

    They stand beside the embedding's *output*, so a base that scales its embeddings (Gemma) does not scale them.
    """

    is_outermost: ClassVar[bool] = True  # no other change knows the virtual ids
    only_adds = True

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.float())
        self.first = 0
        """How many virtual ids of other adapters come before this one's."""

    def ids(self, layer: Any) -> range:
        """Return the ids of these rows. Counted at each call: `resize_token_embeddings` may move them."""
        first = layer.weight.shape[0] + self.first
        return range(first, first + self.rows.shape[0])

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = self.ids(layer)
        is_own = (x >= own.start) & (x < own.stop)
        words = inner(x.masked_fill(is_own, 0), *args, **kwargs)
        # F.embedding and not rows[ids]: the backward of indexing adds in an order that varies with two threads.
        rows = F.embedding((x - own.start).clamp(0, len(own) - 1), self.rows)
        return torch.where(is_own[..., None], rows.to(words.dtype), words)


def add_virtual_tokens(model: Any, name: str, rows: Tensor) -> None:
    """Let adapter `name` of a causal language model put `rows` (count, width) in front of every text."""
    taken = [change.first + change.rows.shape[0] for _, change in _virtual_rows(model)]
    change = VirtualRows(rows)
    change.first = max(taken, default=0)
    add_change(model, model.get_input_embeddings(), name, change)
    if not taken:
        model._peftly.virtual_tokens = VirtualTokens(model)


def drop_virtual_tokens(model: Any, name: str) -> None:
    """Undo `add_virtual_tokens`."""
    drop_changes(model.get_input_embeddings(), name)
    if not any(_virtual_rows(model)):
        model._peftly.virtual_tokens.remove()


def _virtual_rows(model: Any) -> Iterator[tuple[str, VirtualRows]]:
    """Yield the adapters that have virtual tokens, in the order in which they were attached."""
    changes = getattr(model.get_input_embeddings(), CHANGES, {})
    return ((name, change) for name, change in changes.items() if isinstance(change, VirtualRows))


class VirtualTokens:
    """The hooks on a decoder-only model that let the virtual tokens of its adapters in and out of its body."""

    def __init__(self, model: Any) -> None:
        """Install the hooks on a causal language model of transformers."""
        self.model = model
        self.body = model.get_decoder()
        self.text_config = model.config.get_text_config(decoder=True)
        self.signature = inspect.signature(self.body.forward)
        self.handles = [
            self.body.register_forward_pre_hook(self._before, with_kwargs=True),
            self.body.register_forward_hook(self._after, with_kwargs=True),
        ]
        for override in (_PrepareInputs, _PrepareCache):
            override_method(model, override.name, override(model, self))

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()
        for override in (_PrepareInputs, _PrepareCache):
            restore_method(self.model, override.name)

    def chosen(self) -> list[list[int]]:
        """Return the ids of the virtual tokens of each row that adapters were chosen for; of one for all of them."""
        embedding = self.model.get_input_embeddings()
        own = {name: change.ids(embedding) for name, change in _virtual_rows(self.model)}
        rows: Rows = selection_of(self.model).rows
        return [[id_ for name, ids in own.items() if name in names for id_ in ids] for names in rows.sets]

    def count(self) -> int:
        """Return how many virtual tokens the row with the most of them has."""
        return max(map(len, self.chosen()))

    def owners(self) -> tuple[Names, ...]:
        """Return the adapters with virtual tokens that are chosen, row by row."""
        having = frozenset(name for name, _ in _virtual_rows(self.model))
        return tuple(names & having for names in selection_of(self.model).rows.sets)

    def slots(self, at: Tensor) -> Slots:
        """Return the virtual tokens of a call whose rows' texts start in the columns `at`, (batch, 1)."""
        batch, chosen = at.shape[0], self.chosen()
        count = max(map(len, chosen))
        ids = torch.tensor([[0] * (count - len(row)) + row for row in chosen], device=at.device)
        used = torch.tensor([[0] * (count - len(row)) + [1] * len(row) for row in chosen], device=at.device)
        selection_of(self.model).rows.spread(batch)  # refuses a batch that the choice is not for
        times = batch // len(chosen)
        ids, used = ids.repeat_interleave(times, 0), used.repeat_interleave(times, 0)
        return Slots(ids, at * used, used, self.owners())

    def _before(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        call = self.signature.bind_partial(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        ids, mask = call.get("input_ids"), call.get("attention_mask")
        cache: Any = call.get("past_key_values")
        cached = 0 if cache is None else int(cache.get_seq_length())
        if not any(self.owners()) and getattr(cache, "slots", None) is None:
            return (), call
        if ids is None:
            raise MethodError("a model with virtual tokens needs input_ids: it cannot place them among inputs_embeds")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise MethodError("a model with virtual tokens needs a 2-D attention_mask, (batch, length)")
        if cached:
            self._continue(call, cache)
            self._check_length(cached + ids.shape[1], call, cache.slots.count)
        elif mask is None and cache is None and _is_packed(call.get("position_ids")):
            self._insert_packed(call)
        else:
            self._insert(call)
        return (), call

    def _insert(self, call: dict[str, Any]) -> None:
        """Start a sequence: the virtual tokens go in front of each row's first real token."""
        ids, mask, cache = call["input_ids"], call.get("attention_mask"), call.get("past_key_values")
        at = ids.new_zeros(ids.shape[0], 1) if mask is None else mask.ne(0).int().argmax(1, keepdim=True)
        slots = self.slots(at)
        if mask is None and len(slots.owners) > 1:
            mask = torch.ones_like(ids)
        call["input_ids"] = longer = insert(ids, slots.at, slots.ids)
        _remember(longer, text_columns(slots.at, ids.shape[1]), slots)
        if mask is not None:
            self._check_rows(mask)
            call["attention_mask"] = mask = insert(mask, slots.at, slots.used)
        self._check_length(longer.shape[1], call, slots.count)
        if "position_ids" in self.signature.parameters:
            call["position_ids"] = None if mask is None else positions_of(mask)
        if call.get("token_type_ids") is not None:
            call["token_type_ids"] = insert(call["token_type_ids"], slots.at, torch.zeros_like(slots.ids))
        if cache is not None:
            cache.slots = slots

    def _insert_packed(self, call: dict[str, Any]) -> None:
        """Start a packed row: the virtual tokens go in front of each of its examples."""
        ids = call["input_ids"]
        virtual = self.slots(ids.new_zeros(1, 1)).ids[0]
        longer, call["position_ids"], columns = insert_packed(ids, call["position_ids"], virtual)
        self._check_length(int(call["position_ids"].max()) + 1, call, len(virtual))
        _remember(longer, columns, None)
        call["input_ids"] = longer
        call["use_cache"] = False  # with a cache transformers does not see that the row is packed
        call.pop("seq_idx", None)
        for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if (ends := call.get(key)) is not None:
                call[key] = ends + len(virtual) * torch.arange(ends.numel(), device=ends.device, dtype=ends.dtype)
        for key in ("max_length_q", "max_length_k"):
            if call.get(key) is not None:
                call[key] = call[key] + len(virtual)

    def _continue(self, call: dict[str, Any], cache: Any) -> None:
        """Go on after a cached beginning that holds the virtual tokens already."""
        slots: Slots | None = getattr(cache, "slots", None)
        if slots is None or slots.owners != self.owners():
            raise MethodError(
                "this cache was filled without the virtual tokens of the adapters that are on now, or with those of "
                "others; start from an empty cache, or fill it with the same adapters on"
            )
        mask, positions = call.get("attention_mask"), call.get("position_ids")
        if mask is None and len(slots.owners) > 1:
            raise MethodError("rows with different adapters need an attention_mask to go on from a cache")
        slots = slots.repeat_to(call["input_ids"].shape[0])
        if mask is not None:
            call["attention_mask"] = mask = insert(mask, slots.at, slots.used)
        if positions is not None:
            call["position_ids"] = positions + slots.used.sum(1, keepdim=True)
        elif mask is not None and "position_ids" in self.signature.parameters:
            call["position_ids"] = positions_of(mask)[:, -call["input_ids"].shape[1] :]

    def _after(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ids = cast(Any, kwargs.get("input_ids"))
        columns = getattr(ids, "text_columns", None)
        if columns is None:
            return output
        if isinstance(output, tuple):
            return (_pick(output[0], columns), *output[1:])
        output["last_hidden_state"] = _pick(output["last_hidden_state"], columns)
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(_pick(states, columns) for states in output["hidden_states"])
        if output.get("attentions") is not None:
            # A text's view of the virtual tokens stays visible: only the rows of the virtual tokens go.
            output["attentions"] = tuple(
                _pick(heads.transpose(1, 2), columns).transpose(1, 2) for heads in output["attentions"]
            )
        if output.get("past_key_values") is not None:
            output["past_key_values"].slots = ids.slots
        return output

    def _check_rows(self, mask: Tensor) -> None:
        # Windows count columns, so the virtual tokens must stand right before the text, and where that is going to
        # start is unknown in a row that is all padding so far.
        if getattr(self.text_config, "sliding_window", None) is not None and not bool(mask.any(1).all()):
            raise MethodError("a row of this call is all padding; fill the cache in longer pieces, or pad less")

    def _check_length(self, needed: int, call: dict[str, Any], virtual: int) -> None:
        limit = getattr(self.text_config, "max_position_embeddings", None)
        if limit is not None and needed > limit and (mask := call.get("attention_mask")) is not None:
            needed = int(mask.ne(0).sum(1).max())  # padding needs no position
        if limit is not None and needed > limit:
            raise MethodError(
                f"{needed} positions ({needed - virtual} of text and {virtual} virtual tokens) are more than "
                f"the {limit} of this base; shorten the text (data.max_length) or use fewer virtual tokens"
            )


def _remember(ids: Any, columns: Tensor, slots: Slots | None) -> None:
    """Write on the ids of a call which columns are text and which virtual tokens were put in."""
    ids.text_columns, ids.slots = columns, slots


def _is_packed(positions: Tensor | None) -> bool:
    return positions is not None and positions.shape[0] == 1 and bool((torch.diff(positions) != 1).any())


def _pick(states: Tensor, columns: Tensor) -> Tensor:
    """Return the rows of `states` (batch, length, ...) at `columns` (batch, kept)."""
    index = columns.reshape(*columns.shape, *[1] * (states.ndim - 2))
    return states.gather(1, index.expand(states.shape[0], -1, *states.shape[2:]))


class _PrepareInputs:
    """`prepare_inputs_for_generation` that counts text, where the cache counts text and virtual tokens."""

    name: ClassVar[str] = "prepare_inputs_for_generation"

    def __init__(self, model: Any, tokens: VirtualTokens) -> None:
        self.original = getattr(model, self.name)
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any) -> dict[str, Any]:
        cache: Any = kwargs.get("past_key_values")
        mask = kwargs.get("attention_mask")
        slots: Slots | None = getattr(cache, "slots", None)
        if next_sequence_length is not None and slots is not None:
            next_sequence_length = input_ids.shape[1] - (int(cache.get_seq_length()) - slots.count)
        inputs: dict[str, Any] = self.original(input_ids, next_sequence_length=next_sequence_length, **kwargs)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            inputs["attention_mask"] = mask  # static caches make a 4-D one, which has no room for the virtual tokens
        return inputs


class _PrepareCache:
    """`_prepare_cache_for_generation` with room for the virtual tokens in a static cache."""

    name: ClassVar[str] = "_prepare_cache_for_generation"

    def __init__(self, model: Any, tokens: VirtualTokens) -> None:
        self.original = getattr(model, self.name)
        self.tokens = tokens

    def __call__(self, config: Any, model_kwargs: Any, mode: Any, batch_size: int, max_cache_length: int) -> None:
        self.original(config, model_kwargs, mode, batch_size, max_cache_length + self.tokens.count())
