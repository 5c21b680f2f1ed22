"""Calls of a stack that continue from a cache in which adapters have inserted columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftly.errors import MethodError
from peftly.injection.insertion import InsertionPlan, insert_columns
from peftly.injection.selection import AdapterNames
from peftly.injection.stack_calls import StackCall

__all__ = ["cached_insertion", "continue_after", "move_positions"]


def cached_insertion(
    call: StackCall, stored: InsertionPlan | None, owners: tuple[AdapterNames, ...], noun: str
) -> InsertionPlan | None:
    """Return the inserted columns of the cache from which a call continues, or None if the call starts a text.

    Args:
        call: a call of a stack.
        stored: inserted columns that are noted on the cache of the call.
        owners: active adapters that insert columns, for each batch element.
        noun: what the adapters insert, in the plural, for messages.

    Raises:
        MethodError: the mask has a form into which no columns can be inserted, or the cache was filled with other
            adapters.
    """
    mask, cache = call.arguments.get("attention_mask"), call.arguments.get("past_key_values")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise MethodError(f"a model with {noun} needs a 2-D attention_mask, (batch, length)")
    if cache is None or not int(cache.get_seq_length()):
        return None
    if stored is None or stored.owners != owners:
        raise MethodError(
            f"this cache was filled without the {noun} of the adapters that are active now, or with those of others; "
            "start from an empty cache, or fill it with the same adapters active"
        )
    return stored


def continue_after(plan: InsertionPlan, call: StackCall) -> None:
    """Let the mask and positions of a call count the inserted columns of its cache."""
    mask, positions = call.arguments.get("attention_mask"), call.arguments.get("position_ids")
    if mask is None and len(plan.owners) > 1:
        # `generate` passes no mask where no text has padding; but elements with fewer columns have unused ones.
        cached = int(call.arguments["past_key_values"].get_seq_length()) - plan.count
        mask = call.inputs.new_ones(call.inputs.shape[0], cached + call.inputs.shape[1], dtype=torch.long)
    plan = plan.repeat_to(call.inputs.shape[0])
    if mask is not None:
        call.arguments["attention_mask"] = insert_columns(mask, plan, plan.used)
        move_positions(call.arguments, plan)
    elif positions is not None:
        call.arguments["position_ids"] = positions + plan.used.sum(1, keepdim=True)


def move_positions(arguments: dict[str, Any], plan: InsertionPlan) -> None:
    """Leave out the positions of a call with a mask, which follow from it; move those in several dimensions.

    Args:
        arguments: arguments of the call by name.
        plan: columns that were inserted in front of the text.
    """
    positions = arguments.pop("position_ids", None)
    if positions is not None and positions.ndim == 3:  # of texts with images, (dimensions, batch, length)
        arguments["position_ids"] = positions + plan.used.sum(1, keepdim=True)
