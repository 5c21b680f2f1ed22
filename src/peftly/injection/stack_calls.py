"""State of the calls of a stack of transformer blocks, from their pre-forward hook to their forward hook."""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from peftly.injection.insertion import InsertionPlan

__all__ = ["StackCall", "close_call", "current_call", "open_call"]


@dataclass(eq=False)
class StackCall:
    """One call of a stack.

    Attributes:
        arguments: arguments of the stack's forward by name, which the pre-forward hook changes.
        contexts: contexts that are open while the stack runs.
        text_columns: columns of the stack whose outputs the caller gets, (batch, length); None: all columns.
        virtual_tokens: plan of the virtual tokens that were inserted into the ids, or None.
        is_changed: whether columns were inserted into the sequences of the caller, or these were packed, so that the
            call needs positions of its own. A call without such a change has those of its caller and its model.
        packed_batch: layout of a batch that `injection.packing` has packed, or None.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    contexts: ExitStack = field(default_factory=ExitStack)
    text_columns: Tensor | None = None
    virtual_tokens: InsertionPlan | None = None
    is_changed: bool = False
    packed_batch: Any = None

    @property
    def inputs(self) -> Tensor:
        """Ids, (batch, length), or embeddings, (batch, length, width), with which the stack is called."""
        ids: Tensor | None = self.arguments.get("input_ids")
        return self.arguments["inputs_embeds"] if ids is None else ids


def open_call() -> StackCall:
    """Make a new call the current one."""
    call = StackCall()
    _CALLS.set((*_CALLS.get(), call))
    return call


def current_call() -> StackCall | None:
    """Return the innermost call that runs in the current context, or None."""
    calls = _CALLS.get()
    return calls[-1] if calls else None


def close_call() -> StackCall:
    """Return the current call, after which the call around it is the current one again."""
    *outer, call = _CALLS.get()
    _CALLS.set(tuple(outer))
    return call


_CALLS: ContextVar[tuple[StackCall, ...]] = ContextVar("calls of stacks that run", default=())
