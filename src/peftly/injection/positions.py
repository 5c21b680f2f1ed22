"""Positions that count the words of each row, so that padding in front of a text does not move it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS

__all__ = ["Positions", "positions_of"]


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each real token in its row, (batch, length); padding gets 0.

    Args:
        mask: (batch, length), not 0 for real tokens.
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0) * mask.ne(0)


class Positions:
    """How a stack of blocks learns the positions of its words: as an argument, through its table, or not at all.

    Left to itself GPT-2 counts padding as words, and a left-padded row gets other logits than the same row alone.
    """

    def __init__(self, body: nn.Module, *, takes_argument: bool) -> None:
        """Look at `body`, and hook its table of positions if that is the only way in (BART)."""
        self.takes_argument = takes_argument
        table: Any = getattr(body, "embed_positions", None)
        self.handles = []
        if not takes_argument and isinstance(table, nn.Embedding):
            self.handles = [
                table.register_forward_pre_hook(_give, with_kwargs=True),
                table.register_forward_hook(_without_extra_dimension),
            ]
        words: Any = getattr(body, "embeddings", None)
        # RoBERTa counts from the row behind its padding's.
        padding = getattr(getattr(words, "position_embeddings", None), "padding_idx", None)
        self.first = 0 if padding is None else padding + 1

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def given(self, call: dict[str, Any], length: int) -> Iterator[None]:
        """Derive the positions of a call of `length` columns from its 2-D mask where the caller gave none."""
        if (packing := call.get("packing")) is not None:
            call["position_ids"] = packing.positions(call["input_ids"].device) + self.first
        mask = call.get("attention_mask")
        known = isinstance(mask, Tensor) and mask.ndim == 2 and call.get("position_ids") is None
        positions = None
        if isinstance(mask, Tensor) and known and (self.takes_argument or self.handles):
            positions = positions_of(mask)[:, -length:]
            if self.first:
                positions = (positions + self.first).where(mask.ne(0)[:, -length:], self.first - 1)
        if positions is not None and self.takes_argument:
            call["position_ids"] = positions
        elif isinstance(mask, Tensor) and positions is not None and _are_as_counted(positions, mask):
            positions = None  # what the table does by itself
        token = _TABLE_POSITIONS.set(None if self.takes_argument else positions)
        try:
            yield
        finally:
            _TABLE_POSITIONS.reset(token)


def _are_as_counted(positions: Tensor, mask: Tensor) -> bool:
    """Whether the positions of the last columns' real words are those columns' numbers."""
    columns = torch.arange(mask.shape[1], device=mask.device)[-positions.shape[1] :]
    return bool(((positions == columns) | mask.eq(0)[:, -positions.shape[1] :]).all())


_TABLE_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions for the table", default=None)


def _give(table: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    positions = _TABLE_POSITIONS.get()
    if positions is None:
        return None
    if hasattr(table, LAYER_ADAPTERS) and positions.shape[0] > 1:
        raise MethodError(
            "this base has one table of positions for all rows, which is trained here; pad on the right, and let all "
            "rows of a batch have prefixes of one length"
        )
    return args, {**kwargs, "position_ids": positions}


def _without_extra_dimension(table: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    # The table expects positions that are the same for all rows and puts a dimension in front for them.
    return output if _TABLE_POSITIONS.get() is None else output.squeeze(0)
