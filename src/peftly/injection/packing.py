"""Packed calls of a stack: the words of all rows laid end to end, without padding, while its callers see a batch.

The last step on the way into a body, after virtual tokens have found their places, and the first on the way out. So
heads, losses and every other hook work as on a padded batch, and whatever is in front of a text, or in it, is packed
along with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection.selection import selection_of
from peftly.kernels import IMPLEMENTATION, Packing, no_mask

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = ["PoolerReads", "enter", "leave", "packed_token_indices", "under_way"]


def enter(body: StackHooks, call: dict[str, Any]) -> None:
    """Lay the rows of a call end to end if its model's attention keeps them apart; see `peftly.kernels.packed_attention.packed`.

    What all rows begin with is laid down once where attention is causal: it is the same in all of them.
    """
    ids, mask = call.get("input_ids"), call.get("attention_mask")
    if body.config._attn_implementation != IMPLEMENTATION or not isinstance(ids, Tensor) or mask is None:
        return
    if call.get("past_key_values") is not None or call.get("output_attentions") or mask.ndim != 2:
        return
    if len(selection_of(body.model).rows.sets) > 1:
        return  # layers find their adapters by the rows of a batch
    real = mask.ne(0)
    shared = _common(ids, real) if body.role == "decoder" else 0
    order = real.int().cumsum(1) - 1  # of each word among those of its row
    own = real & (order >= shared)
    first = order.eq(0).int().argmax(1)[0]
    columns = torch.cat([first + torch.arange(shared, device=ids.device), own.flatten().nonzero().squeeze(1)])
    places = (own.flatten().cumsum(0) - 1 + shared).view_as(ids)
    places = torch.where(own, places, torch.where(real, order, 0))
    packed = cast(Any, ids.flatten()[columns][None])
    packed.unpacked, packed.places = ids, places
    call["input_ids"], call["packing"] = packed, Packing(own.sum(1).tolist(), shared=shared)
    if call.get("token_type_ids") is not None:
        call["token_type_ids"] = call["token_type_ids"].flatten()[columns][None]
    call["attention_mask"], call["use_cache"] = no_mask(ids.device), False
    call.pop("position_ids", None)


def _common(ids: Tensor, real: Tensor) -> int:
    """Return how many words all rows begin with, without the last word of any.

    Args:
        ids: (batch, length).
        real: False for padding, likewise; a row's words are side by side.
    """
    lengths = real.sum(1)
    most = int(lengths.min()) - 1
    if len(ids) == 1 or most < 1:
        return 0
    starts = real.int().argmax(1, keepdim=True)
    firsts = ids.gather(1, starts + torch.arange(most, device=ids.device))
    return int((firsts == firsts[0]).all(0).int().cumprod(0).sum())


@contextmanager
def under_way(call: dict[str, Any]) -> Iterator[None]:
    """While a packed call runs, let `PoolerReads` know."""
    token = _IDS.set(None if call.get("packing") is None else call["input_ids"])
    try:
        yield
    finally:
        _IDS.reset(token)


_IDS: ContextVar[Any] = ContextVar("the ids of a packed call", default=None)


def packed_token_indices() -> Tensor | None:
    """Return which column each word of a batch is in, (batch, length), while its packed call runs; else None."""
    ids = _IDS.get()
    return None if ids is None else cast(Tensor, ids.places)


class PoolerReads:
    """A hook through which a pooler (BERT's) reads the rows of a packed call."""

    def __call__(self, pooler: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = _IDS.get()
        # A trained copy of it, which has the same hook, is called inside and gets them unpacked already.
        return args if ids is None or args[0].shape[:2] != ids.shape else (_unpacked(args[0], ids), *args[1:])


def leave(call: dict[str, Any], output: Any) -> Any:
    """Give every row of a packed call its words back; what was padding gets anything."""
    if call.get("packing") is None:
        return output
    ids = cast(Any, call["input_ids"])
    call["input_ids"] = ids.unpacked
    if isinstance(output, tuple):
        return (_unpacked(output[0], ids), *output[1:])
    output["last_hidden_state"] = _unpacked(output["last_hidden_state"], ids)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(_unpacked(states, ids) for states in output["hidden_states"])
    return output


def _unpacked(states: Tensor, ids: Any) -> Tensor:
    """Return packed states, (1, columns, width), as a batch, (batch, length, width)."""
    if states.shape[:2] != ids.shape:
        raise MethodError(
            f"a packed call of {ids.shape[1]} columns came back as {tuple(states.shape)}; train with packing: false"
        )
    # F.embedding and not states[places]: the backward of indexing adds in an order that varies with two threads.
    return F.embedding(ids.places, states[0])
