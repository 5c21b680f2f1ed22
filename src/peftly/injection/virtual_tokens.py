"""Virtual tokens: trained rows that a model reads as if they were words of its input.

A virtual token is a token id past the last row of the input embedding. Such ids enter the sequence inside the model's
body and leave it there again. In a decoder they stand after each row's padding (PEFT puts its rows in front of the
padding instead, which makes an example's loss depend on the batch it is in); in an encoder that reads alone, after its
first token (`[CLS]`); or before, inside and after the text, where its template marks them. Every adapter has ids of its
own, so rows with different virtual tokens, or with none, share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection.cached_calls import cached_insertion, continue_after
from peftly.injection.caching import Kept
from peftly.injection.insertion import InsertionPlan, insert_columns, insert_packed, pick, text_columns
from peftly.injection.layers import LAYER_ADAPTERS, LayerAdapter, add_layer_adapter, remove_layer_adapters
from peftly.injection.prompt_states import cache_with_prompt, prompt_states
from peftly.injection.selection import AdapterNames, selection_of, spread

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = ["Position", "VirtualTokens", "add_virtual_tokens", "chosen_count", "drop_virtual_tokens", "enter", "leave"]

Position = Literal["front", "after_cls", "template"]
"""Where rows stand: in front of the text, after its first token, or wherever its template marks them."""


class VirtualTokens(LayerAdapter):
    """The trained rows of one adapter, looked up by the embedding for ids of the adapter's own past its last row.

    They stand beside the embedding's *output*, so a base that scales its embeddings (Gemma) does not scale them.

    Attributes:
        rows: (count, width), or what `encoder` makes the rows from.
        encoder: a network that is trained with them and gives (count, width); None: the rows are trained themselves.
        position: where they stand in a text.
        first: how many virtual ids of other adapters come before this one's.
        kept: the keys and values of these rows, and of those in front of the text that were on with them.
    """

    is_outermost: ClassVar[bool] = True  # no other change knows the virtual ids
    only_adds = True

    def __init__(self, rows: Tensor, encoder: nn.Module | None = None, *, position: Position = "front") -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.float())
        self.encoder = encoder
        self.position = position
        self.first = 0
        self.kept = Kept()

    def values(self) -> Tensor:
        """Return the rows as the model reads them, (count, width)."""
        if self.encoder is None:
            return self.rows
        encoded: Tensor = self.encoder(self.rows)
        return encoded

    def ids(self, layer: Any) -> range:
        """Return the ids of these rows. Counted at each call: `resize_token_embeddings` may move them."""
        first = layer.weight.shape[0] + self.first
        return range(first, first + self.rows.shape[0])

    def offsets(self, marks: Sequence[int]) -> Sequence[int]:
        """Return how many tokens of a text stand before each row.

        Args:
            marks: before each one that the text's template marks.

        Raises:
            MethodError: those are not as many as the rows that stand at them.
        """
        count = self.rows.shape[0]
        if self.position != "template":
            return [int(self.position == "after_cls")] * count
        if len(marks) != count:
            raise MethodError(f"a text has places for {len(marks)} virtual tokens, and the adapter has {count}")
        return marks

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = self.ids(layer)
        is_own = (x >= own.start) & (x < own.stop)
        words = inner(x.masked_fill(is_own, 0), *args, **kwargs)
        if (x.shape[-1] == 1 or not torch.is_grad_enabled()) and not bool(is_own.any()):
            return words  # what is written, or follows rows computed before; an encoder would be run for nothing
        # F.embedding and not rows[ids]: the backward of indexing adds in an order that varies with two threads.
        rows = F.embedding((x - own.start).clamp(0, len(own) - 1), self.values())
        return torch.where(is_own[..., None], rows.to(words.dtype), words)


def add_virtual_tokens(model: Any, name: str, change: VirtualTokens) -> None:
    """Let adapter `name` of a transformers model put its rows into every text."""
    body: StackHooks = model._peftly.bodies.text
    change.first = max((other.first + other.rows.shape[0] for _, other in _virtual_rows(body)), default=0)
    add_layer_adapter(model, _embedding(body), name, change)


def drop_virtual_tokens(model: Any, name: str) -> None:
    """Undo `add_virtual_tokens`."""
    remove_layer_adapters(_embedding(model._peftly.bodies.text), name)


def chosen_count(body: StackHooks) -> int:
    """Return how many virtual tokens the row with the most of them has, with the adapters that are on."""
    return max(map(_count, _chosen(body)))


def enter(body: StackHooks, call: dict[str, Any]) -> None:
    """Put the virtual tokens of the adapters that are on into a call of `body`."""
    ids, cache = call.get("input_ids"), cast(Any, call.get("past_key_values"))
    known: InsertionPlan | None = getattr(cache, "slots", None)
    if known is None and not any(_owners(body)):
        return
    if ids is None:
        raise MethodError("a model with virtual tokens needs input_ids: it cannot place them among inputs_embeds")
    slots = cached_insertion(call, known, _owners(body), "virtual tokens")
    if slots is not None:
        continue_after(slots, call)
        body.check_length(int(cache.get_seq_length()) + ids.shape[1], call.get("attention_mask"), slots.count)
    elif call.get("attention_mask") is None and cache is None and _is_packed(call.get("position_ids")):
        _insert_packed(body, call)
    else:
        _insert(body, call)


def leave(body: StackHooks, call: dict[str, Any], output: Any) -> Any:
    """Take the virtual tokens out of what `body` has computed; an encoder's decoder goes on seeing them."""
    ids = cast(Any, call.get("input_ids"))
    columns: Tensor | None = getattr(ids, "text_columns", None)
    if columns is None:
        return output
    slots: InsertionPlan | None = ids.slots
    if body.role == "source" and slots is not None:
        columns = torch.cat([slots.columns(), columns], dim=1)
    if isinstance(output, tuple):
        return (pick(output[0], columns), *output[1:])
    output["last_hidden_state"] = pick(output["last_hidden_state"], columns)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(pick(states, columns) for states in output["hidden_states"])
    if output.get("attentions") is not None:
        # A text's view of the virtual tokens stays visible: only the rows of the virtual tokens go.
        output["attentions"] = tuple(
            pick(heads.transpose(1, 2), columns).transpose(1, 2) for heads in output["attentions"]
        )
    if output.get("past_key_values") is not None:
        output["past_key_values"].slots = slots
    return output


def show_to_decoder(body: StackHooks, call: dict[str, Any]) -> None:
    """Let the mask over an encoder's states, which a decoder is called with, cover the virtual tokens in front."""
    states, mask = call.get("encoder_hidden_states"), call.get("encoder_attention_mask")
    source: StackHooks = body.model._peftly.bodies.text
    owners = _owners(source)
    if states is None or not any(owners):
        return
    counts = torch.tensor(spread(list(map(_count, _chosen(source))), len(states), "adapters were chosen"))
    used = (torch.arange(int(counts.max())) < counts[:, None]).long().to(states.device)
    text = states.shape[1] - used.shape[1] if mask is None else mask.shape[1]
    if states.shape[1] == text:
        return  # states that were computed without the virtual tokens
    if states.shape[1] - text != used.shape[1]:
        raise MethodError(
            f"encoder_outputs has {states.shape[1]} columns, and the text {text} with {used.shape[1]} virtual tokens; "
            "compute the encoder's outputs with the adapters on that are on now"
        )
    if mask is not None or len(owners) > 1:
        mask = states.new_ones(states.shape[0], text, dtype=torch.long) if mask is None else mask
        call["encoder_attention_mask"] = torch.cat([used.to(mask.dtype), mask], dim=1)


def _insert(body: StackHooks, call: dict[str, Any]) -> None:
    """Start a sequence."""
    ids, mask, cache = call["input_ids"], call.get("attention_mask"), call.get("past_key_values")
    start = ids.new_zeros(ids.shape[0], 1) if mask is None else mask.ne(0).int().argmax(1, keepdim=True)
    lengths = torch.full_like(start, ids.shape[1]) if mask is None else mask.ne(0).sum(1, keepdim=True)
    slots, virtual = _slots(body, start, lengths, columns=ids.shape[1])
    if mask is None and len(slots.owners) > 1:
        mask = torch.ones_like(ids)
    states = prompt_states(body, call, _chosen(body))
    if states is None:
        _insert_ids(body, call, slots, virtual, start)
    else:
        call["past_key_values"] = cache_with_prompt(body, cache, states, slots)
    if mask is not None:
        _check_rows(body, mask)
        call["attention_mask"] = mask = insert_columns(mask, slots, slots.used)
    body.check_length(ids.shape[1] + slots.count, mask, slots.count)
    call.pop("position_ids", None)
    if cache is not None:
        cache.slots = slots


def _insert_ids(body: StackHooks, call: dict[str, Any], slots: InsertionPlan, virtual: Tensor, start: Tensor) -> None:
    """Put the `virtual` ids into the words of a call, whose texts start at `start`, and remember where."""
    ids = call["input_ids"]
    call["input_ids"] = longer = insert_columns(ids, slots, virtual)
    columns = text_columns(slots, ids.shape[1])
    if body.role == "decoder":
        # What comes next is said by the last column before it: a token's, or that of a virtual one that follows it.
        columns = torch.cat([columns[:, 1:], torch.full_like(columns[:, :1], longer.shape[1])], dim=1) - 1
    if body.role == "encoder" and type(body.model).__name__.endswith("ForSequenceClassification"):
        # Rows in front of an encoder's first token are PEFT's, which then classifies by the first of them.
        in_front = slots.used[:, :1].bool() & (slots.at[:, :1] == start)
        columns[:, :1] = torch.where(in_front, slots.columns()[:, :1], columns[:, :1])
    _note_insertion(longer, columns, slots)
    if call.get("token_type_ids") is not None:
        call["token_type_ids"] = insert_columns(call["token_type_ids"], slots, torch.zeros_like(slots.at))


def _insert_packed(body: StackHooks, call: dict[str, Any]) -> None:
    """Start a packed row: the virtual tokens go in front of each of its examples."""
    ids = call["input_ids"]
    selection_of(body.model).rows.spread(1)
    changes, embedding = _chosen(body)[0], _embedding(body)
    if any(change.position != "front" for change in changes):
        raise MethodError(
            "packed rows take virtual tokens in front of their texts only; give each text a row of its own"
        )
    virtual = torch.tensor([id_ for change in changes for id_ in change.ids(embedding)], device=ids.device)
    longer, call["position_ids"], columns = insert_packed(ids, call["position_ids"], virtual)
    body.check_length(int(call["position_ids"].max()) + 1, None, len(virtual))
    _note_insertion(longer, columns, None)
    call["input_ids"] = longer
    call["use_cache"] = False  # with a cache transformers does not see that the row is packed
    call.pop("seq_idx", None)
    for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if (ends := call.get(key)) is not None:
            call[key] = ends + len(virtual) * torch.arange(ends.numel(), device=ends.device, dtype=ends.dtype)
    for key in ("max_length_q", "max_length_k"):
        if call.get(key) is not None:
            call[key] = call[key] + len(virtual)


def _slots(body: StackHooks, start: Tensor, lengths: Tensor, *, columns: int) -> tuple[InsertionPlan, Tensor]:
    """Return where the virtual tokens of a call go, and their ids, (batch, count).

    Empty slots come first in a decoder, where new words follow at the end, and last in an encoder, whose positions may
    be counted from the first column.

    Args:
        body: whose call it is.
        start: the column in which each row's text starts, (batch, 1).
        lengths: how many tokens it has, (batch, 1).
        columns: of the call.
    """
    chosen = _chosen(body)
    rows = _rows(body, chosen, start.shape[0])
    count, in_front = max(map(len, rows)), body.role == "decoder"
    empty = (0, 0, 0)
    filled = [
        [empty] * (count - len(row)) + row if in_front else row + [empty] * (count - len(row))
        for row in ([(id_, 1, offset) for id_, offset in row] for row in rows)
    ]
    table = torch.tensor(filled, device=start.device).view(len(rows), count, 3)
    ids, used, offsets = table.repeat_interleave(start.shape[0] // len(rows), 0).unbind(-1)
    if _is_marked(chosen) and bool((offsets > lengths).any()):
        raise MethodError(
            "a virtual token has its place past the end of the text in this call; give the whole text in one call"
        )
    at = torch.where(used.bool(), start + offsets, 0 if in_front else columns)
    return InsertionPlan(at, used, _owners(body)), ids


def _rows(body: StackHooks, chosen: Sequence[list[VirtualTokens]], batch: int) -> list[list[tuple[int, int]]]:
    """Return the virtual tokens of each row, or what is the same for several rows in place, in their order.

    Each is an id, and how many tokens of the text stand before it.
    """
    selection, embedding = selection_of(body.model), _embedding(body)
    selection.rows.spread(batch)  # refuses a batch that the choice is not for
    marks: list[tuple[int, ...]] = [()] * len(chosen)
    if _is_marked(chosen):
        if selection.places is None:
            raise MethodError(
                "the virtual tokens stand where a template marks them, and this call does not say where that is; give "
                "peftly.generate what RowFormat.format_prompt makes of a row (on the command line: --text instead of --prompt), "
                "or call the model inside peftly.use_prompt_positions(model, places)"
            )
        chosen = list(spread(chosen, batch, "adapters were chosen"))
        marks = list(spread(selection.places, batch, "places were given"))
    found = []
    for changes, own in zip(chosen, marks, strict=True):
        pairs = [pair for change in changes for pair in zip(change.ids(embedding), change.offsets(own), strict=True)]
        found.append(sorted(pairs, key=lambda pair: pair[1]))
    return found


def _is_marked(chosen: Sequence[list[VirtualTokens]]) -> bool:
    """Whether a template says where some virtual tokens of a call stand."""
    return any(change.position == "template" for changes in chosen for change in changes)


def _chosen(body: StackHooks) -> list[list[VirtualTokens]]:
    """Return what has virtual tokens in each row that adapters were chosen for, in the order of attachment."""
    own = dict(_virtual_rows(body))
    return [[change for name, change in own.items() if name in names] for names in selection_of(body.model).rows.sets]


def _count(changes: Sequence[VirtualTokens]) -> int:
    return sum(change.rows.shape[0] for change in changes)


def _owners(body: StackHooks) -> tuple[AdapterNames, ...]:
    """Return the adapters with virtual tokens that are on, row by row."""
    having = frozenset(name for name, _ in _virtual_rows(body))
    return tuple(names & having for names in selection_of(body.model).rows.sets)


def _virtual_rows(body: StackHooks) -> Iterator[tuple[str, VirtualTokens]]:
    """Yield the adapters that have virtual tokens, in the order in which they were attached."""
    changes = getattr(_embedding(body), LAYER_ADAPTERS, {})
    return ((name, change) for name, change in changes.items() if isinstance(change, VirtualTokens))


def _embedding(body: StackHooks) -> Any:
    # The stack's own: T5's encoder and decoder have one each, over the same weights.
    return body.module.get_input_embeddings()


def _check_rows(body: StackHooks, mask: Tensor) -> None:
    # Windows count columns, so the virtual tokens must stand right before the text, and where that is going to
    # start is unknown in a row that is all padding so far.
    if getattr(body.config, "sliding_window", None) is not None and not bool(mask.any(1).all()):
        raise MethodError("a row of this call is all padding; fill the cache in longer pieces, or pad less")


def _note_insertion(ids: Any, columns: Tensor, slots: InsertionPlan | None) -> None:
    """Write on the ids of a call which columns are text and which virtual tokens were put in."""
    ids.text_columns, ids.slots = columns, slots


def _is_packed(positions: Tensor | None) -> bool:
    return positions is not None and positions.shape[0] == 1 and bool((torch.diff(positions) != 1).any())
