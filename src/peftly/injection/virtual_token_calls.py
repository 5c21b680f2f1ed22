"""Calls of a stack with virtual tokens: their ids enter the sequences, and their outputs leave again.

In a decoder virtual tokens go after the padding of each sequence. PEFT inserts them in front of the padding, which
makes the loss of an example depend on the batch it is in. In an encoder that reads alone they go after its first token
(`[CLS]`); or they go before, inside and after the text, where its template marks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftly.errors import MethodError
from peftly.injection.cached_calls import cached_insertion, continue_after
from peftly.injection.insertion import (
    InsertionPlan,
    cache_insertions,
    insert_columns,
    insert_packed,
    insert_states,
    pick_columns,
    store_cache_insertions,
    text_columns,
)
from peftly.injection.prompt_states import cache_with_prompt, prompt_states
from peftly.injection.selection import expand_to_batch, selection_of
from peftly.injection.virtual_tokens import (
    active_owners,
    active_token_ids,
    active_virtual_tokens,
    are_marked,
    count_virtual_tokens,
    embedding_of,
)

if TYPE_CHECKING:
    from peftly.injection.stack_calls import StackCall
    from peftly.injection.stack_hooks import StackHooks

__all__ = ["extend_encoder_mask", "insert_virtual_tokens", "remove_virtual_tokens"]


def insert_virtual_tokens(hooks: StackHooks, call: StackCall) -> None:
    """Insert the active virtual tokens into a call of a stack."""
    arguments = call.arguments
    cache: Any = arguments.get("past_key_values")
    stored = cache_insertions(cache).virtual_tokens
    if stored is None and not any(active_owners(hooks)):
        return
    call.is_changed = True
    plan = cached_insertion(call, stored, active_owners(hooks), "virtual tokens")
    if plan is not None:
        continue_after(plan, call)
        columns = int(cache.get_seq_length()) + call.inputs.shape[1]
        hooks.check_length(columns, arguments.get("attention_mask"), plan.count)
    elif arguments.get("attention_mask") is None and cache is None and _is_packed(arguments.get("position_ids")):
        _insert_packed(hooks, call)
    else:
        _start_text(hooks, call)


def remove_virtual_tokens(hooks: StackHooks, call: StackCall, output: Any) -> Any:
    """Remove the outputs of virtual tokens from those of a stack. The decoder behind an encoder still sees them."""
    columns, plan = call.text_columns, call.virtual_tokens
    if columns is None:
        return output
    if hooks.role == "source" and plan is not None:
        columns = torch.cat([plan.columns(), columns], dim=1)
    if isinstance(output, tuple):
        return (pick_columns(output[0], columns), *output[1:])
    output["last_hidden_state"] = pick_columns(output["last_hidden_state"], columns)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(pick_columns(states, columns) for states in output["hidden_states"])
    if output.get("attentions") is not None:
        # Virtual tokens stay among the keys; they leave the queries only.
        output["attentions"] = tuple(
            pick_columns(weights.transpose(1, 2), columns).transpose(1, 2) for weights in output["attentions"]
        )
    if output.get("past_key_values") is not None:
        store_cache_insertions(output["past_key_values"], virtual_tokens=plan)
    return output


def extend_encoder_mask(hooks: StackHooks, call: StackCall) -> None:
    """Extend the mask over the states of an encoder, with which its decoder is called, by the virtual tokens."""
    states, mask = call.arguments.get("encoder_hidden_states"), call.arguments.get("encoder_attention_mask")
    source: StackHooks | None = hooks.model._peftly.hooks.text
    owners = () if source is None else active_owners(source)
    if source is None or states is None or not any(owners):
        return
    counts = torch.tensor(
        expand_to_batch(list(map(count_virtual_tokens, active_virtual_tokens(source))), len(states), "adapters")
    )
    used = (torch.arange(int(counts.max())) < counts[:, None]).long().to(states.device)
    text = states.shape[1] - used.shape[1] if mask is None else mask.shape[1]
    if states.shape[1] == text:
        return  # states that were computed without virtual tokens
    if states.shape[1] - text != used.shape[1]:
        raise MethodError(
            f"encoder_outputs has {states.shape[1]} columns, and the text {text} with {used.shape[1]} virtual tokens; "
            "compute the outputs of the encoder with the adapters that are active now"
        )
    if mask is not None or len(owners) > 1:
        mask = states.new_ones(states.shape[0], text, dtype=torch.long) if mask is None else mask
        call.arguments["encoder_attention_mask"] = torch.cat([used.to(mask.dtype), mask], dim=1)


def _start_text(hooks: StackHooks, call: StackCall) -> None:
    """Insert virtual tokens into a call that starts texts."""
    arguments = call.arguments
    inputs, mask, cache = call.inputs, arguments.get("attention_mask"), arguments.get("past_key_values")
    start = inputs.new_zeros(inputs.shape[0], 1, dtype=torch.long)
    if mask is not None:
        start = mask.ne(0).int().argmax(1, keepdim=True)
    lengths = torch.full_like(start, inputs.shape[1]) if mask is None else mask.ne(0).sum(1, keepdim=True)
    plan, virtual_ids = _plan(hooks, start, lengths, columns=inputs.shape[1])
    if mask is None and len(plan.owners) > 1:
        mask = inputs.new_ones(inputs.shape[:2], dtype=torch.long)
    states = prompt_states(hooks, call, active_virtual_tokens(hooks))
    if states is None:
        _insert_ids(hooks, call, plan, virtual_ids, start)
    else:
        arguments["past_key_values"] = cache_with_prompt(hooks, cache, states, plan)
    if mask is not None:
        _check_padding(hooks, mask)
        arguments["attention_mask"] = mask = insert_columns(mask, plan, plan.used)
    hooks.check_length(inputs.shape[1] + plan.count, mask, plan.count)
    arguments.pop("position_ids", None)
    if cache is not None:
        store_cache_insertions(cache, virtual_tokens=plan)


def _insert_ids(hooks: StackHooks, call: StackCall, plan: InsertionPlan, virtual_ids: Tensor, start: Tensor) -> None:
    """Insert virtual tokens into the ids or embeddings of a call, whose texts start at the columns `start`, (batch, 1).

    Embeddings of a text get the embeddings of the virtual tokens, which the embedding of the stack looks up.
    """
    arguments, inputs = call.arguments, call.inputs
    if arguments.get("input_ids") is not None:
        arguments["input_ids"] = insert_columns(inputs, plan, virtual_ids)
    else:
        arguments["inputs_embeds"] = insert_states(inputs, plan, embedding_of(hooks)(virtual_ids))
    columns = text_columns(plan, inputs.shape[1])
    if hooks.role == "decoder":
        # The last column before a token predicts it: that of the token before, or of a virtual token that follows it.
        last = torch.full_like(columns[:, :1], inputs.shape[1] + plan.count)
        columns = torch.cat([columns[:, 1:], last], dim=1) - 1
    if hooks.role == "encoder" and hooks.is_sequence_classifier:
        # PEFT's virtual tokens go in front of the first token of an encoder, which then classifies by the first one.
        in_front = plan.used[:, :1].bool() & (plan.before[:, :1] == start)
        columns[:, :1] = torch.where(in_front, plan.columns()[:, :1], columns[:, :1])
    call.text_columns, call.virtual_tokens = columns, plan
    for name in ("token_type_ids", "global_attention_mask"):  # the second is Longformer's
        if arguments.get(name) is not None:
            arguments[name] = insert_columns(arguments[name], plan, torch.zeros_like(plan.before))


def _insert_packed(hooks: StackHooks, call: StackCall) -> None:
    """Insert virtual tokens in front of each example of a packed sequence, whose positions restart at each example."""
    arguments = call.arguments
    ids = arguments.get("input_ids")
    if ids is None:
        raise MethodError("packed sequences take virtual tokens as input_ids only, not as inputs_embeds")
    selection_of(hooks.model).active.expand(1)
    virtual_tokens, embedding = active_virtual_tokens(hooks)[0], embedding_of(hooks)
    if any(adapter.position != "front" for adapter in virtual_tokens):
        raise MethodError(
            "packed sequences take virtual tokens in front of their texts only; pass each text as a batch element"
        )
    virtual_ids = torch.tensor([id_ for adapter in virtual_tokens for id_ in adapter.ids(embedding)], device=ids.device)
    count = len(virtual_ids)
    arguments["input_ids"], arguments["position_ids"], call.text_columns = insert_packed(
        ids, arguments["position_ids"], virtual_ids
    )
    hooks.check_length(int(arguments["position_ids"].max()) + 1, None, count)
    arguments["use_cache"] = False  # with a cache transformers does not notice that the sequence is packed
    arguments.pop("seq_idx", None)
    for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if (ends := arguments.get(key)) is not None:
            arguments[key] = ends + count * torch.arange(ends.numel(), device=ends.device, dtype=ends.dtype)
    for key in ("max_length_q", "max_length_k"):
        if arguments.get(key) is not None:
            arguments[key] += count


def _plan(hooks: StackHooks, start: Tensor, lengths: Tensor, *, columns: int) -> tuple[InsertionPlan, Tensor]:
    """Return the plan of the virtual tokens of a call, and their ids, (batch, count).

    Unused columns come first in a decoder, where new tokens follow at the end, and last in an encoder, whose positions
    may be counted from the first column.

    Args:
        hooks: the stack that is called.
        start: column in which each text starts, (batch, 1).
        lengths: number of tokens of each text, (batch, 1).
        columns: number of columns of the call.
    """
    tokens = active_token_ids(hooks, start.shape[0])
    count, in_front = max(map(len, tokens)), hooks.role == "decoder"
    unused = (0, 0, 0)
    filled = [
        [unused] * (count - len(used)) + used if in_front else used + [unused] * (count - len(used))
        for used in ([(id_, 1, offset) for id_, offset in pairs] for pairs in tokens)
    ]
    table = torch.tensor(filled, device=start.device).view(len(tokens), count, 3)
    ids, used, offsets = table.repeat_interleave(start.shape[0] // len(tokens), 0).unbind(-1)
    if are_marked(active_virtual_tokens(hooks)) and bool((offsets > lengths).any()):
        raise MethodError(
            "a virtual token has its position past the end of the text in this call; pass the whole text in one call"
        )
    before = torch.where(used.bool(), start + offsets, 0 if in_front else columns)
    return InsertionPlan(before, used, active_owners(hooks)), ids


def _check_padding(hooks: StackHooks, mask: Tensor) -> None:
    # Sliding windows count columns, so virtual tokens must be right before the text. Where a sequence is all padding so
    # far, the column in which its text will start is unknown.
    if getattr(hooks.config, "sliding_window", None) is not None and not bool(mask.any(1).all()):
        raise MethodError(
            "a batch element of this call is all padding; fill the cache in longer pieces, or use less padding"
        )


def _is_packed(positions: Tensor | None) -> bool:
    return positions is not None and positions.shape[0] == 1 and bool((torch.diff(positions) != 1).any())
