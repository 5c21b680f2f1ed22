"""Virtual tokens: trained rows that a model reads as if they were words of its input.

A virtual token is a token id past the last row of the input embedding. Such ids enter the sequence inside the model's
body (`model.get_decoder()`), after each row's padding, and leave it there again: heads, losses, `generate` and every
caller see the text only. PEFT puts its rows in front of the padding instead, which makes an example's loss depend on
the batch it is in.

What a call needs to remember (where the prompt went) rides on its own tensors and cache, never on the hooks, so calls
from several threads, copies and pickles of the model do not disturb each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.methods._layers import LayerChange, override_method, restore_method
from peftly.methods._positions import positions_of

__all__ = ["VirtualRows", "VirtualTokens", "insert", "text_columns"]


def insert(x: Tensor, at: Tensor, fill: Tensor) -> Tensor:
    """Put `fill` into every row of `x` at that row's own column.

    Args:
        x: (batch, length).
        at: the column for the first inserted value, (batch, 1).
        fill: (count,).

    Returns:
        (batch, length + count).
    """
    count = fill.shape[0]
    column = torch.arange(x.shape[1] + count, device=x.device)
    inserted = (column >= at) & (column < at + count)
    source = torch.where(column < at, column, column - count).clamp(0, x.shape[1] - 1)
    values = fill.to(x.dtype)[(column - at).clamp(0, count - 1)]
    return torch.where(inserted, values, x.gather(1, source.expand(x.shape[0], -1)))


def text_columns(at: Tensor, count: int, length: int) -> Tensor:
    """Return where `insert` puts each old column: (batch, length), for `at` of (batch, 1)."""
    column = torch.arange(length, device=at.device)
    return torch.where(column < at, column, column + count)


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
    """The trained rows, looked up by the embedding for ids past its own last row.

    They stand beside the embedding's *output*, so a base that scales its embeddings (Gemma) does not scale them.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.float())

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first = layer.weight.shape[0]  # counted at each call: `resize_token_embeddings` may move it
        is_virtual = x >= first
        words = inner(x.masked_fill(is_virtual, 0), *args, **kwargs)
        # F.embedding and not rows[ids]: the backward of indexing adds in an order that varies with two threads.
        rows = F.embedding((x - first).clamp(0, self.rows.shape[0] - 1), self.rows)
        return torch.where(is_virtual[..., None], rows.to(words.dtype), words)


class VirtualTokens:
    """The hooks on a decoder-only model that let virtual tokens in and out of its body."""

    def __init__(self, model: Any, count: int) -> None:
        """Install the hooks.

        Args:
            model: a causal language model of transformers.
            count: how many virtual tokens stand in front of every text.
        """
        self.count = count
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

    def ids(self, device: torch.device) -> Tensor:
        """Return the ids of the virtual tokens, (count,)."""
        first = self.model.get_input_embeddings().weight.shape[0]
        return torch.arange(first, first + self.count, device=device)

    def _before(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        call = self.signature.bind_partial(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        ids, mask, cache = call.get("input_ids"), call.get("attention_mask"), call.get("past_key_values")
        if ids is None:
            raise MethodError("a model with virtual tokens needs input_ids: it cannot place them among inputs_embeds")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise MethodError("a model with virtual tokens needs a 2-D attention_mask, (batch, length)")
        cached = 0 if cache is None else cache.get_seq_length()
        self._check_length(int(cached) + ids.shape[1], has_prompt=cached > 0)
        if cached:
            self._continue(call, cache)
        elif mask is None and cache is None and _is_packed(call.get("position_ids")):
            self._insert_packed(call)
        else:
            self._insert(call)
        return (), call

    def _insert(self, call: dict[str, Any]) -> None:
        """Start a sequence: the virtual tokens go in front of each row's first real token."""
        ids, mask, cache = call["input_ids"], call.get("attention_mask"), call.get("past_key_values")
        at = ids.new_zeros(ids.shape[0], 1) if mask is None else mask.ne(0).int().argmax(1, keepdim=True)
        call["input_ids"] = longer = insert(ids, at, self.ids(ids.device))
        _remember(longer, text_columns(at, self.count, ids.shape[1]), at)
        if mask is not None:
            self._check_rows(mask)
            call["attention_mask"] = mask = insert(mask, at, mask.new_ones(self.count))
        if "position_ids" in self.signature.parameters:
            call["position_ids"] = None if mask is None else positions_of(mask)
        if call.get("token_type_ids") is not None:
            call["token_type_ids"] = insert(call["token_type_ids"], at, ids.new_zeros(self.count))
        if cache is not None:
            cache.prompt_at = at

    def _insert_packed(self, call: dict[str, Any]) -> None:
        """Start a packed row: the virtual tokens go in front of each of its examples."""
        ids = call["input_ids"]
        longer, call["position_ids"], columns = insert_packed(ids, call["position_ids"], self.ids(ids.device))
        _remember(longer, columns, None)
        call["input_ids"] = longer
        call["use_cache"] = False  # with a cache transformers does not see that the row is packed
        call.pop("seq_idx", None)
        for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if (ends := call.get(key)) is not None:
                call[key] = ends + self.count * torch.arange(ends.numel(), device=ends.device, dtype=ends.dtype)
        for key in ("max_length_q", "max_length_k"):
            if call.get(key) is not None:
                call[key] = call[key] + self.count

    def _continue(self, call: dict[str, Any], cache: Any) -> None:
        """Go on after a cached beginning that holds the virtual tokens already."""
        at = getattr(cache, "prompt_at", None)
        if at is None:
            raise MethodError(
                "this cache was filled without the adapter's virtual tokens; start from an empty cache, "
                "or fill it through the adapted model"
            )
        mask, positions = call.get("attention_mask"), call.get("position_ids")
        if mask is not None:
            at = at.repeat_interleave(mask.shape[0] // at.shape[0], 0)  # beams and repeated rows
            call["attention_mask"] = mask = insert(mask, at, mask.new_ones(self.count))
        if positions is not None:
            call["position_ids"] = positions + self.count
        elif mask is not None and "position_ids" in self.signature.parameters:
            call["position_ids"] = positions_of(mask)[:, -call["input_ids"].shape[1] :]

    def _after(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        ids = kwargs["input_ids"]
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
        cache = output.get("past_key_values")
        if cache is not None:
            cache.prompt_at = ids.prompt_at
        return output

    def _check_rows(self, mask: Tensor) -> None:
        # Windows count columns, so the virtual tokens must stand right before the text, and where that is going to
        # start is unknown in a row that is all padding so far.
        if getattr(self.text_config, "sliding_window", None) is not None and not bool(mask.any(1).all()):
            raise MethodError("a row of this call is all padding; fill the cache in longer pieces, or pad less")

    def _check_length(self, length: int, *, has_prompt: bool) -> None:
        limit = getattr(self.text_config, "max_position_embeddings", None)
        needed = length + (0 if has_prompt else self.count)
        if limit is not None and needed > limit:
            raise MethodError(
                f"{needed} positions ({needed - self.count} of text and {self.count} virtual tokens) are more than "
                f"the {limit} of this base; shorten the text (data.max_length) or use fewer virtual tokens"
            )


def _remember(ids: Any, columns: Tensor, at: Tensor | None) -> None:
    """Write on the ids of a call which columns are text and where the virtual tokens start."""
    ids.text_columns, ids.prompt_at = columns, at


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
        if next_sequence_length is not None and getattr(cache, "prompt_at", None) is not None:
            next_sequence_length = input_ids.shape[1] - (int(cache.get_seq_length()) - self.tokens.count)
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
        self.original(config, model_kwargs, mode, batch_size, max_cache_length + self.tokens.count)
