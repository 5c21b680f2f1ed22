"""Calls of a stack whose cache holds, or is to hold, more than text: what they must bring, and how they go on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftly.errors import MethodError
from peftly.injection.insertion import InsertionPlan, insert_columns
from peftly.injection.selection import AdapterNames

__all__ = ["cached_insertion", "continue_after"]


def cached_insertion(
    call: dict[str, Any], known: InsertionPlan | None, owners: tuple[AdapterNames, ...], what: str
) -> InsertionPlan | None:
    """Return what stands beside the words in the cache that a call goes on from; None if it starts a text.

    Args:
        call: the arguments of the call.
        known: what its cache remembers of that.
        owners: the adapters that are on, row by row, of those that put something in.
        what: they put in, for messages.

    Raises:
        MethodError: the mask is of a kind that nothing can be put into, or the cache was filled with other adapters on.
    """
    mask, cache = call.get("attention_mask"), call.get("past_key_values")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise MethodError(f"a model with {what} needs a 2-D attention_mask, (batch, length)")
    if cache is None or not int(cache.get_seq_length()):
        return None
    if known is None or known.owners != owners:
        raise MethodError(
            f"this cache was filled without the {what} of the adapters that are on now, or with those of others; "
            "start from an empty cache, or fill it with the same adapters on"
        )
    return known


def continue_after(slots: InsertionPlan, call: dict[str, Any]) -> None:
    """Let the mask and positions of a call count what stands in its cache beside the text."""
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    if mask is None and len(slots.owners) > 1:
        raise MethodError("rows with different adapters need an attention_mask to go on from a cache")
    words: Tensor = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    slots = slots.repeat_to(words.shape[0])
    if mask is not None:
        call["attention_mask"] = insert_columns(mask, slots, slots.used)
        call.pop("position_ids", None)
    elif positions is not None:
        call["position_ids"] = positions + slots.used.sum(1, keepdim=True)
