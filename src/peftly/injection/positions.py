"""Positions that count the tokens of each sequence, so that padding in front of a text does not move it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.injection.layers import LAYER_ADAPTERS
from peftly.injection.stack_calls import current_call

__all__ = ["Positions", "columns_of", "positions_behind_padding", "positions_of"]


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each token in its sequence, (batch, length); padding has position 0.

    Args:
        mask: (batch, length), 0 for padding.
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0) * mask.ne(0)


def columns_of(mask: Tensor) -> Tensor:
    """Return the column of each token, (batch, length): the positions of models that count padding.

    Args:
        mask: (batch, length), 0 for padding.
    """
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)


def positions_behind_padding(mask: Tensor) -> Tensor:
    """Return the positions of texts with padding in front, (batch, length); those of all others are the columns.

    Args:
        mask: (batch, length), 0 for padding. A text with padding between its tokens keeps the columns, too.
    """
    is_in_front = (mask.ne(0).long().diff(dim=1) >= 0).all(1, keepdim=True)
    return torch.where(is_in_front, positions_of(mask), columns_of(mask))


class Positions:
    """Positions of the tokens of a stack, which takes them as an argument, through its table, or not at all.

    GPT-2 by itself counts padding, and a left-padded text gets other logits than the same text alone.

    Attributes:
        takes_argument: whether the stack takes positions as an argument.
        counts_tokens: whether the stack derives its positions from the mask or the ids by itself, as OPT does.
        first: first position of a text.
    """

    def __init__(self, stack: nn.Module, *, takes_argument: bool) -> None:
        """Hook the table of positions of `stack`, unless the stack takes positions as an argument (BART does not)."""
        self.takes_argument = takes_argument
        table: Any = getattr(stack, "embed_positions", None)
        self.counts_tokens = table is not None and (
            "attention_mask" in inspect.signature(table.forward).parameters
            or hasattr(table, "create_position_ids_from_input_ids")
        )
        self.handles = []
        if not takes_argument and isinstance(table, nn.Embedding):
            self.handles = [
                table.register_forward_pre_hook(_pass_positions, with_kwargs=True),
                table.register_forward_hook(_without_extra_dimension),
            ]
        embeddings: Any = getattr(stack, "embeddings", None)
        # RoBERTa counts from the position after that of padding.
        padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        self.first = 0 if padding is None else padding + 1

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def applied(
        self, arguments: dict[str, Any], length: int, derive: Callable[[Tensor], Tensor] = positions_of
    ) -> Iterator[None]:
        """Derive the positions of a call from its 2-D mask, unless the caller passed positions.

        Args:
            arguments: arguments of the call by name, which may get `position_ids`.
            length: number of columns of the call.
            derive: function that returns the positions for a mask.
        """
        if (packing := arguments.get("packing")) is not None:
            arguments["position_ids"] = packing.positions(arguments["input_ids"].device) + self.first
        mask = arguments.get("attention_mask")
        is_derivable = isinstance(mask, Tensor) and mask.ndim == 2 and arguments.get("position_ids") is None
        positions = None
        if isinstance(mask, Tensor) and is_derivable and (self.takes_argument or self.handles):
            positions = derive(mask)[:, -length:]
            if self.first:
                positions = (positions + self.first).where(mask.ne(0)[:, -length:], self.first - 1)
        if positions is not None and self.takes_argument:
            arguments["position_ids"] = positions
        elif isinstance(mask, Tensor) and positions is not None and _are_columns(positions, mask):
            positions = None  # the table counts columns by itself
        token = _TABLE_POSITIONS.set(None if self.takes_argument else positions)
        try:
            yield
        finally:
            _TABLE_POSITIONS.reset(token)


def _are_columns(positions: Tensor, mask: Tensor) -> bool:
    """Whether the positions of the tokens in the last columns of `mask` are the numbers of these columns."""
    columns = torch.arange(mask.shape[1], device=mask.device)[-positions.shape[1] :]
    return bool(((positions == columns) | mask.eq(0)[:, -positions.shape[1] :]).all())


_TABLE_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions for the table", default=None)


def _pass_positions(table: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    positions = None if current_call() is None else _TABLE_POSITIONS.get()
    if positions is None:
        return None
    if hasattr(table, LAYER_ADAPTERS) and positions.shape[0] > 1:
        raise MethodError(
            "this base has one table of positions for all batch elements, which is trained here; pad on the right, and "
            "use prefixes of one length in a batch"
        )
    return args, {**kwargs, "position_ids": positions}


def _without_extra_dimension(table: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    # The table expects positions that all batch elements share, and adds a batch dimension for these.
    return output if current_call() is None or _TABLE_POSITIONS.get() is None else output.squeeze(0)
