"""Batches of encoded examples for passes without gradients."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from peftly.adapters import use_adapters, use_prompt_positions
from peftly.data import Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["batches", "by_length", "on_device", "pad_id"]


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices, the longest first: whatever does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def batches(model: "PreTrainedModel", split: Split, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield what `by_length` does; until the next batch the model knows each row's own places and adapters.

    Those are the places that its template marks, and the adapters that the split names, if it names any.
    """
    for chosen in by_length(lengths, batch_size):
        rows = None if split.adapters is None else [split.adapters[index] for index in chosen]
        own = nullcontext() if rows is None else use_adapters(model, rows=rows)
        with own, use_prompt_positions(model, [split.encoded[index].prompt_positions for index in chosen]):
            yield chosen


def on_device(batch: dict[str, Any], model: "PreTrainedModel") -> dict[str, Any]:
    """Return the tensors of a batch where the model is."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return what fills up a batch. Any id does: padded places are masked by length."""
    return int(tokenizer.pad_token_id or 0)
