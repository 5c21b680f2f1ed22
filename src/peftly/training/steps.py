"""The processes of a training run, the examples of each step, and their micro-batches on each process."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from peftly.data import EncodedExample, epoch_steps, token_counts
from peftly.training.micro_batches import MicroBatchSplitter
from peftly.training.processes import join_processes, num_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "common_prefix_length",
    "examples_of_steps",
    "make_accelerator",
    "micro_batches_of_process",
    "steps_per_epoch",
]


def make_accelerator(*, on_cpu: bool = False) -> "Accelerator":
    """Return the accelerator of this run, which knows its processes and moves tensors between them.

    Args:
        on_cpu: whether several processes compute on the CPU of a machine with GPUs.
    """
    from accelerate import Accelerator

    join_processes()
    # The base model keeps the dtype and the device that it was loaded with. Only a launch of several processes gives
    # each process a device; without a GPU the processes find each other only if accelerate is told to use the CPU.
    several = num_processes() > 1
    cpu = several and (on_cpu or not torch.accelerator.is_available())
    return Accelerator(mixed_precision="no", device_placement=several, cpu=cpu)


def steps_per_epoch(examples: Sequence[EncodedExample], size: int) -> int:
    """Return how many steps of `size` examples see every example once."""
    return math.ceil(len(examples) / size)


def examples_of_steps(
    examples: Sequence[EncodedExample], size: int, *, first: int = 0, end: int, seed: int
) -> Iterator[list[EncodedExample]]:
    """Yield the examples of each step. They depend on the seed and on the number of the step, and on nothing else.

    Args:
        examples: training examples.
        size: examples of a step, on all processes together.
        first: number of the first step, from 0.
        end: number of the step after the last.
        seed: seed of the order.
    """
    lengths = token_counts(examples)
    per_epoch = steps_per_epoch(examples, size)
    for step in range(first, end):
        epoch, index = divmod(step, per_epoch)
        if index == 0 or step == first:
            steps = epoch_steps(lengths, size, seed=seed, epoch=epoch)
        yield [examples[number] for number in steps[index]]


def common_prefix_length(examples: Sequence[EncodedExample]) -> int:
    """Return how many tokens all examples begin with."""
    return len(os.path.commonprefix([example.input_ids for example in examples]))  # noqa: RUF071 -- it takes any lists


def micro_batches_of_process(
    examples: Sequence[EncodedExample], splitter: MicroBatchSplitter, accelerator: "Accelerator"
) -> list[list[int]]:
    """Return the indices of the examples in each micro-batch of this process.

    Every process gets as many micro-batches, since all of them go through each one together; those of a process with
    fewer examples are empty at the end.

    Args:
        examples: examples of the whole step.
        splitter: splits the examples of a process into micro-batches.
        accelerator: accelerator of the run.
    """
    order = sorted(range(len(examples)), key=lambda index: examples[index].num_tokens)
    # Every process has examples of all lengths, so that all take about as long.
    shares = [order[process :: accelerator.num_processes] for process in range(accelerator.num_processes)]
    shared = common_prefix_length(examples)
    micro_batches = [
        [
            [share[index] for index in group]
            for group in splitter.split([examples[index].num_tokens for index in share], shared)
        ]
        for share in shares
    ]
    of_process = micro_batches[accelerator.process_index]
    return of_process + [[] for _ in range(max(map(len, micro_batches)) - len(of_process))]
