"""Packed calls of a stack: the tokens of all examples of a batch in one sequence, without padding.

A call is packed in one of two ways. A training step collates its examples to one sequence and calls the model within
`packed_call`; the stack then returns packed hidden states. Any other call of a model that uses packed attention has a
padded batch: its tokens are packed on the way into the stack, as the last step after the insertion of virtual tokens,
and its hidden states are padded again on the way out. So heads, losses and all other hooks work as on a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection.selection import Selection, selection_of
from peftly.injection.stack_calls import current_call
from peftly.injection.virtual_tokens import max_virtual_tokens
from peftly.kernels import IMPLEMENTATION, Packing, no_mask

if TYPE_CHECKING:
    from peftly.injection.stack_calls import StackCall
    from peftly.injection.stack_hooks import StackHooks

__all__ = [
    "PoolerHook",
    "current_packing",
    "is_packed_sequence",
    "pack_call",
    "packed_call",
    "pad_output",
]

_SEQUENCE: ContextVar[tuple[Selection, Packing] | None] = ContextVar(
    "packing of the sequence that is passed", default=None
)


@dataclass(frozen=True, eq=False)
class _BatchLayout:
    """Layout of a batch that was packed on the way into a stack.

    Attributes:
        input_ids: padded token ids of the batch, (batch, length).
        columns: column of every token in the packed sequence, (batch, length); any column for padding.
        num_columns: number of columns of the sequence.
    """

    input_ids: Tensor
    columns: Tensor
    num_columns: int

    def pad(self, states: Tensor) -> Tensor:
        """Return packed hidden states, (1, columns, width), as those of the batch, (batch, length, width)."""
        if states.shape[:2] != (1, self.num_columns):
            raise MethodError(
                f"a packed call of {self.num_columns} columns returned {tuple(states.shape)}; train with packing: false"
            )
        # F.embedding and not states[columns]: the backward of indexing adds in an order that varies with two threads.
        return F.embedding(self.columns, states[0])


@contextmanager
def packed_call(model: Any, packing: Packing) -> Iterator[None]:
    """Call an adapted model that uses packed attention with one packed sequence, inside the block.

    The sequence has to contain the virtual tokens of the active adapters (see `virtual_token_ids`), since the hooks
    insert none. The model is called without an attention mask and without positions, and its hidden states stay packed.

    Args:
        model: adapted model.
        packing: layout of the sequence.
    """
    token = _SEQUENCE.set((selection_of(model), packing))
    try:
        yield
    finally:
        _SEQUENCE.reset(token)


def is_packed_sequence(hooks: StackHooks) -> bool:
    """Return whether the present call of a stack has a packed sequence, within `packed_call`."""
    return _sequence_packing(hooks) is not None


def pack_call(hooks: StackHooks, call: StackCall) -> None:
    """Give a call the packing of its sequence; or pack its batch, if the model uses packed attention.

    A common prefix of all examples is packed once where attention is causal, since its hidden states are the same in
    all of them.
    """
    packing = _sequence_packing(hooks)
    if packing is not None:
        _use_sequence(hooks, call, packing)
    elif not _pack_batch(hooks, call):
        return
    call.is_changed, arguments = True, call.arguments
    arguments["attention_mask"], arguments["use_cache"] = no_mask(arguments["input_ids"].device), False
    arguments.pop("position_ids", None)


def _sequence_packing(hooks: StackHooks) -> Packing | None:
    sequence = _SEQUENCE.get()
    return None if sequence is None or sequence[0] is not selection_of(hooks.model) else sequence[1]


def _use_sequence(hooks: StackHooks, call: StackCall, packing: Packing) -> None:
    """Give a call the packing of its sequence."""
    if hooks.config._attn_implementation != IMPLEMENTATION:
        raise MethodError("a packed sequence needs packed attention; call the model inside use_packed_attention(model)")
    if inserted := max_virtual_tokens(hooks):
        hooks.check_length(packing.longest, None, inserted)
    call.arguments["packing"] = packing


def _pack_batch(hooks: StackHooks, call: StackCall) -> bool:
    """Pack the batch of a call; return False if the call has to stay as it is."""
    arguments = call.arguments
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if hooks.config._attn_implementation != IMPLEMENTATION or not isinstance(ids, Tensor) or mask is None:
        return False
    if arguments.get("past_key_values") is not None or arguments.get("output_attentions") or mask.ndim != 2:
        return False
    if len(selection_of(hooks.model).active.sets) > 1:
        return False  # layers find the adapters of an example by its index in the batch
    is_token = mask.ne(0)
    shared = _common_prefix_length(ids, is_token) if hooks.role == "decoder" else 0
    index = is_token.int().cumsum(1) - 1  # of each token in its example
    is_own = is_token & (index >= shared)
    first = index.eq(0).int().argmax(1)[0]
    tokens = torch.cat([first + torch.arange(shared, device=ids.device), is_own.flatten().nonzero().squeeze(1)])
    columns = (is_own.flatten().cumsum(0) - 1 + shared).view_as(ids)
    columns = torch.where(is_own, columns, torch.where(is_token, index, 0))
    call.packed_batch = _BatchLayout(ids, columns, len(tokens))
    arguments["packing"] = Packing(is_own.sum(1).tolist(), shared=shared)
    arguments["input_ids"] = ids.flatten()[tokens][None]
    if arguments.get("token_type_ids") is not None:
        arguments["token_type_ids"] = arguments["token_type_ids"].flatten()[tokens][None]
    return True


def _common_prefix_length(ids: Tensor, is_token: Tensor) -> int:
    """Return how many tokens all examples begin with; every example has at least one token after them.

    Args:
        ids: token ids, (batch, length).
        is_token: False for padding, (batch, length); the tokens of an example are contiguous.
    """
    lengths = is_token.sum(1)
    most = int(lengths.min()) - 1
    if len(ids) == 1 or most < 1:
        return 0
    starts = is_token.int().argmax(1, keepdim=True)
    prefixes = ids.gather(1, starts + torch.arange(most, device=ids.device))
    return int((prefixes == prefixes[0]).all(0).int().cumprod(0).sum())


def current_packing() -> Packing | None:
    """Return the packing of the call of a stack that is running; None if the call is not packed."""
    call = current_call()
    packing: Packing | None = None if call is None else call.arguments.get("packing")
    return packing


class PoolerHook:
    """Forward pre-hook of a pooler (BERT's), which gives the pooler a batch where the call of its stack was packed."""

    def __call__(self, pooler: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of the pooler, padded."""
        call = current_call()
        layout: _BatchLayout | None = None if call is None else call.packed_batch
        # A trained copy of the pooler has the same hook and runs inside it; its input is a batch already.
        if layout is None or args[0].shape[:2] != (1, layout.num_columns):
            return args
        return (layout.pad(args[0]), *args[1:])


def pad_output(call: StackCall, output: Any) -> Any:
    """Return the output of a call, padded with any values if its batch was packed by `pack_call`."""
    layout: _BatchLayout | None = call.packed_batch
    if layout is None:
        return output
    call.arguments["input_ids"] = layout.input_ids
    if isinstance(output, tuple):
        return (layout.pad(output[0]), *output[1:])
    output["last_hidden_state"] = layout.pad(output["last_hidden_state"])
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(layout.pad(states) for states in output["hidden_states"])
    return output
