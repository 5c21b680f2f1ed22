"""The processes of a training run, which rows each step is made of, and the batches that a process makes of them."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.data import EncodedExample, collate, epoch_steps
from peftly.inference import IGNORED
from peftly.training.micro_batches import MicroBatches

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

__all__ = ["common_words", "make_accelerator", "process_batches", "step_rows", "steps_of_epoch"]


def make_accelerator() -> "Accelerator":
    """Return what knows the processes of this run, and moves tensors between them."""
    from accelerate import Accelerator

    # The base computes in the dtype, and stands on the device, that it was loaded with; only a launch of several
    # processes has to give each its own device. Without an accelerator they find each other only if told it is a CPU.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = several and not torch.accelerator.is_available()
    return Accelerator(mixed_precision="no", device_placement=several, cpu=cpu)


def steps_of_epoch(rows: Sequence[EncodedExample], size: int) -> int:
    """Return how many steps of `size` rows see every row once."""
    return math.ceil(len(rows) / size)


def step_rows(
    rows: Sequence[EncodedExample], size: int, *, first: int = 0, end: int, seed: int
) -> Iterator[list[EncodedExample]]:
    """Yield the rows of steps. They depend on the seed and on the step's number, and on nothing else.

    Args:
        rows: the training rows.
        size: rows of a step, on all processes together.
        first: the number of the first of these steps.
        end: that of the step after the last.
        seed: decides the order.
    """
    lengths = [row.num_tokens for row in rows]
    per_epoch = steps_of_epoch(rows, size)
    for step in range(first, end):
        epoch, part = divmod(step, per_epoch)
        if part == 0 or step == first:
            chosen = epoch_steps(lengths, size, seed=seed, epoch=epoch)
        yield [rows[index] for index in chosen[part]]


def common_words(rows: Sequence[EncodedExample]) -> int:
    """Return how many tokens all rows begin with."""
    return len(os.path.commonprefix([row.input_ids for row in rows]))  # noqa: RUF071 -- it takes any lists


def process_batches(
    rows: Sequence[EncodedExample],
    micro: MicroBatches,
    accelerator: "Accelerator",
    tokenizer: "PreTrainedTokenizerBase",
) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Return this process's micro-batches of a step, each with the places of its rows; every process gets as many.

    Args:
        rows: of the whole step.
        micro: cuts what a process has of them.
        accelerator: says which process this is, and of how many.
        tokenizer: names what fills up a batch.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].num_tokens)
    # Every process has rows of all lengths, so that all take about as long.
    shares = [order[first :: accelerator.num_processes] for first in range(accelerator.num_processes)]
    shared = common_words(rows)
    cuts = [
        [[share[place] for place in cut] for cut in micro.cut([rows[place].num_tokens for place in share], shared)]
        for share in shares
    ]
    own, pad_id = cuts[accelerator.process_index], int(tokenizer.pad_token_id or 0)
    batches = []
    for number in range(max(map(len, cuts))):
        places = own[number] if number < len(own) else []
        batch = collate([rows[place] for place in places or order[:1]], pad_id=pad_id)
        if not places:
            # The processes go through each round together; one that has no rows left takes part with no loss.
            batch["labels"].fill_(IGNORED)
        batches.append((places, batch))
    return batches
