"""Batches of encoded examples as tensors, and the order of the examples in an epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftly.data.storage import LazySequence
from peftly.data.types import UNTRAINED, EncodedExample

if TYPE_CHECKING:
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["PackedBatch", "collate", "collate_packed", "epoch_order", "epoch_steps"]

_WINDOWS = 4
_WINDOW_STEPS = 50
"""Least number of windows in an epoch, and largest number of steps in a window; see `epoch_steps`."""


def collate(
    batch: Sequence[EncodedExample], *, pad_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """Return a batch as padded tensors.

    The attention mask comes from the lengths and not from a comparison with `pad_id`, which may be the end token and
    then occurs in texts.

    Args:
        batch: examples, at least one.
        pad_id: token id of padding.
        side: side of the padding: "right" for training, "left" for generation.

    Returns:
        Tensors of int64: `input_ids` and `attention_mask`, (batch, length); `token_type_ids` likewise, if the examples
        have them; `labels`, (batch, most targets), `UNTRAINED` where nothing is trained. The label of a token is in the
        column of the token, and the label of a class in column 0. If a template marks virtual tokens,
        `prompt_positions`, (batch, most virtual tokens), filled up with -1; see `EncodedExample.prompt_positions`.

    Raises:
        ValueError: the batch is empty, or `side` is unknown.
    """
    import torch

    if not batch:
        raise ValueError("collate() was given an empty batch")
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is neither 'left' nor 'right'")

    def padded(sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = max(map(len, sequences))
        table = torch.full((len(sequences), width), filler, dtype=torch.long)
        for index, sequence in enumerate(sequences):
            start = width - len(sequence) if side == "left" else 0
            table[index, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        return table

    tensors = {
        "input_ids": padded([example.input_ids for example in batch], pad_id),
        "attention_mask": padded([[1] * len(example.input_ids) for example in batch], 0),
        "labels": padded([example.targets for example in batch], UNTRAINED),
    }
    if batch[0].token_type_ids is not None:
        tensors["token_type_ids"] = padded([example.token_type_ids or [] for example in batch], 0)
    if any(example.prompt_positions for example in batch):
        tensors["prompt_positions"] = padded([example.prompt_positions for example in batch], -1)
    return tensors


@dataclass(frozen=True)
class PackedBatch:
    """Examples in one packed sequence, without padding.

    Attributes:
        tensors: tensors of int64: `input_ids`, (1, columns); `token_type_ids` likewise, if the examples have them;
            `targets`, (count,), example by example; `target_indices`, (count,), the columns that predict them.
        lengths: number of columns of each example, without the shared ones.
        shared: number of columns in front that belong to every example.
    """

    tensors: dict[str, Tensor]
    lengths: tuple[int, ...]
    shared: int


def collate_packed(
    batch: Sequence[EncodedExample],
    *,
    virtual_tokens: Sequence[Sequence[tuple[int, int]]] | None = None,
    shares_prefix: bool = True,
) -> PackedBatch:
    """Return a batch of texts as one packed sequence: the common prefix of all examples once, then the rest of each.

    A token is predicted by the column before it in its own example, which may be a virtual token. A tag is predicted by
    the column of its token.

    Args:
        batch: examples with trained tokens or with tags, at least one.
        virtual_tokens: ids of the virtual tokens of each example, each with the number of text tokens before it, in
            order; None: there are none.
        shares_prefix: whether the common prefix is stored once, which causal attention allows. It always leaves each
            example a token of its own.

    Raises:
        ValueError: the batch is empty, or an example has a class or an answer as its target.
    """
    import torch

    if not batch:
        raise ValueError("collate_packed() was given an empty batch")
    if any(example.label is not None or example.answer is not None for example in batch):
        raise ValueError("collate_packed() takes examples with trained tokens or with tags")
    sequences = [
        _with_virtual_tokens(example, virtual_tokens[index] if virtual_tokens else ())
        for index, example in enumerate(batch)
    ]
    shared = 0
    if shares_prefix and len(batch) > 1:
        prefix = os.path.commonprefix([ids for ids, _ in sequences])  # noqa: RUF071 -- it takes any lists
        shared = min(len(prefix), min(len(ids) for ids, _ in sequences) - 1)
    packed_ids = list(sequences[0][0][:shared])
    types = [0] * shared
    targets: list[int] = []
    target_indices: list[int] = []
    for example, (ids, text) in zip(batch, sequences, strict=True):
        start = len(packed_ids) - shared
        is_tagged = example.tags is not None
        for index, target in enumerate(example.targets):
            if target == UNTRAINED or (index == 0 and not is_tagged):  # nothing predicts the first token
                continue
            column = text[index] if is_tagged else text[index] - 1
            target_indices.append(column if column < shared else start + column)
            targets.append(target)
        if example.token_type_ids is not None:
            own_types = [0] * len(ids)
            for index, type_id in zip(text, example.token_type_ids, strict=True):
                own_types[index] = type_id
            types[:shared] = own_types[:shared]
            types += own_types[shared:]
        packed_ids += ids[shared:]
    tensors = {
        "input_ids": torch.tensor([packed_ids], dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "target_indices": torch.tensor(target_indices, dtype=torch.long),
    }
    if batch[0].token_type_ids is not None:
        tensors["token_type_ids"] = torch.tensor([types], dtype=torch.long)
    return PackedBatch(tensors, tuple(len(ids) - shared for ids, _ in sequences), shared)


def _with_virtual_tokens(
    example: EncodedExample, virtual_tokens: Sequence[tuple[int, int]]
) -> tuple[list[int], Sequence[int]]:
    """Return the ids of an example with virtual tokens, and the index in them of every token of its text."""
    if not virtual_tokens:
        return example.input_ids, range(len(example.input_ids))
    ids: list[int] = []
    start = 0
    for id_, offset in virtual_tokens:
        ids += example.input_ids[start:offset]
        ids.append(id_)
        start = offset
    ids += example.input_ids[start:]
    offsets = [offset for _, offset in virtual_tokens]
    text, inserted = [], 0
    for index in range(len(example.input_ids)):
        while inserted < len(offsets) and offsets[inserted] <= index:
            inserted += 1
        text.append(index + inserted)
    return ids, text


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order in which `count` examples are seen in an epoch: a function of these three numbers only.

    A resumed run gets the same order again, on any platform: the raw stream of the counter-based generator Philox is
    determined by its key, while the shuffles that libraries build on generators may change between versions.
    """
    order: list[int] = _epoch_order(count, seed, epoch).tolist()
    return order


def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    import numpy as np

    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class EpochSteps(LazySequence[list[int]]):
    """Indices of the examples of each step of an epoch."""

    def __init__(self, indices: NDArray[np.int64], size: int, first_size: int, order: NDArray[np.int64]) -> None:
        """Prepare the steps.

        Args:
            indices: indices of the examples, step by step.
            size: examples of a step.
            first_size: examples of the step that has the first indices; the other steps have `size` examples.
            order: order of the steps.
        """
        self._indices, self._size, self._first_size, self._order = indices, size, first_size, order

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._order)

    def element(self, index: int) -> list[int]:
        """Return the indices of the examples of a step, shortest first."""
        number = int(self._order[index])
        start = self._first_size + (number - 1) * self._size if number else 0
        end = self._first_size + number * self._size
        chosen: list[int] = self._indices[start:end].tolist()
        return chosen


def epoch_steps(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> EpochSteps:
    """Return the indices of the examples of each step of an epoch.

    A step has `size` examples of similar length, shortest first, so that little padding is needed. The shuffled
    examples are cut into windows and sorted by length within a window only, so that an example meets others in every
    epoch. If the number of examples is no multiple of `size`, the examples of the short step are drawn before the
    windows are made; otherwise the longest examples would form the short step in every epoch and count for more.

    Args:
        lengths: number of tokens of each example.
        size: examples of a step.
        seed: seed of the order.
        epoch: number of the epoch, from 0.
    """
    import numpy as np

    order, count = _epoch_order(len(lengths), seed, epoch), len(lengths)
    short = count % size
    window = size * max(1, min(_WINDOW_STEPS, count // (_WINDOWS * size)))
    # The last examples of the shuffled order form the short step, which comes first here, as a window of its own.
    order = np.roll(order, short)
    windows = np.concatenate([np.full(short, -1), np.arange(count - short) // window])
    indices = order[np.lexsort((np.asarray(lengths)[order], windows))]
    # A separate random stream: training uses epochs from 0 on, and epoch -1 chooses the validation examples.
    steps = _epoch_order(math.ceil(count / size), seed, -2 - epoch)
    return EpochSteps(indices, size, short or size, steps)
