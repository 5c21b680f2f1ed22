"""Batches of encoded examples for passes without gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from peftly.adapters import AdapterChoice, use_adapters, use_prompt_positions
from peftly.data import EncodedExample, Split
from peftly.errors import ConfigError
from peftly.models import reads_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["batches", "by_length", "check_adapters", "on_device", "pad_id", "use_batch"]


def by_length(lengths: Sequence[int], batch_size: int, *, equal_lengths: bool = False) -> Iterator[list[int]]:
    """Yield batches of indices in order of length. The longest come first, so that a lack of memory shows at once.

    Args:
        lengths: number of tokens of each example.
        batch_size: maximum number of examples of a batch.
        equal_lengths: whether all examples of a batch must have the same length, so that the batch has no padding.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == batch_size or (equal_lengths and lengths[index] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def use_batch(
    model: "PreTrainedModel", examples: Sequence[EncodedExample], adapters: Sequence[AdapterChoice] | None
) -> Iterator[None]:
    """Activate the prompt positions and the adapters of a batch's examples for the calls of `model` inside the block.

    Args:
        model: model, with or without adapters.
        examples: examples of the batch, with the prompt positions that a template marks.
        adapters: active adapters of each example, as `use_adapters` takes them; None: the active adapters stay.
    """
    selection = nullcontext() if adapters is None else use_adapters(model, adapters=adapters)
    with selection, use_prompt_positions(model, [example.prompt_positions for example in examples]):
        yield


def batches(model: "PreTrainedModel", split: Split, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices in order of length. Until the next batch, `use_batch` is in effect for its examples.

    Args:
        model: model, with or without adapters.
        split: encoded examples, with the adapters of each example where they differ.
        lengths: number of tokens of each example.
        batch_size: maximum number of examples of a batch.
    """
    for chosen in by_length(lengths, batch_size, equal_lengths=reads_padding(model)):
        adapters = None if split.adapters is None else [split.adapters[index] for index in chosen]
        with use_batch(model, [split.encoded[index] for index in chosen], adapters):
            yield chosen


def check_adapters(adapters: Sequence[AdapterChoice] | None, count: int, noun: str) -> None:
    """Check that `adapters` has one entry per prompt, example or text.

    Raises:
        ConfigError: the numbers differ.
    """
    if isinstance(adapters, str):
        raise ConfigError(f"adapters is a list with one entry per {noun}; got the string {adapters!r}")
    if adapters is not None and len(adapters) != count:
        raise ConfigError(f"adapters has one entry per {noun}; got {len(adapters)} for {count} {noun}s")


def on_device(batch: dict[str, Any], model: "PreTrainedModel") -> dict[str, Any]:
    """Return the tensors of a batch on the device of the model."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the padding id. Any id does: the attention mask follows from lengths, not from ids."""
    return int(tokenizer.pad_token_id or 0)
