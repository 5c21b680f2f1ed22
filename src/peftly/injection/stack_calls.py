"""State of the calls of a stack of transformer blocks, from their pre-forward hook to their forward hook."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peftly.injection.insertion import InsertionPlan

if TYPE_CHECKING:
    from peftly.injection.stack_hooks import StackHooks

__all__ = ["StackCall", "close_call", "current_call", "open_call"]


@dataclass(eq=False)
class StackCall:
    """One call of a stack.

    Attributes:
        hooks: hooks of the stack.
        arguments: arguments of the stack's forward by name, which the pre-forward hook changes.
        contexts: contexts that are open while the stack runs.
        text_columns: columns of the stack whose outputs the caller gets, (batch, length); None: all columns.
        virtual_tokens: plan of the virtual tokens that were inserted into the ids, or None.
        is_changed: whether columns were inserted into the sequences of the caller, or these were packed, so that the
            call needs positions of its own. A call without such a change has those of its caller and its model.
        packed_batch: layout of a batch that `injection.packing` has packed, or None.
    """

    hooks: StackHooks
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


def open_call(hooks: StackHooks) -> StackCall:
    """Make a new call the current one."""
    call = StackCall(hooks)
    key = id(call)
    _KNOWN[key] = weakref.ref(call, lambda _: _KNOWN.pop(key, None))
    _CALLS.set((*_CALLS.get(), call))
    return call


def current_call() -> StackCall | None:
    """Return the innermost call that runs in the current context, or None."""
    if not _KNOWN:  # torch.compile traces this line, and guards it; it cannot trace context variables
        return None
    calls = _CALLS.get()
    return calls[-1] if calls else None


def close_call(hooks: StackHooks) -> StackCall | None:
    """Return the current call, after which the call around it is the current one again.

    None if `hooks` did not open it: another thread has added the hooks while the stack ran.
    """
    call = current_call()
    if call is None or call.hooks is not hooks:
        return None
    _CALLS.set(_CALLS.get()[:-1])
    return call


_CALLS: ContextVar[tuple[StackCall, ...]] = ContextVar("calls of stacks that run", default=())
_KNOWN: dict[int, weakref.ref[StackCall]] = {}
"""Calls that some context still has, by id: a copy of a context, for a checkpointed block, may outlive the call."""
