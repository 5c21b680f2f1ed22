"""Which examples come when, and how a handful of them becomes tensors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftly.data.encoding import Encoded

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor

__all__ = ["collate", "epoch_order", "epoch_steps"]

UNTRAINED = -100
"""The label that losses of torch and transformers leave out."""

_WINDOWS = 4
_WINDOW_STEPS = 50
"""An epoch has at least so many windows, none of more steps than this; see `epoch_steps`."""


def collate(
    batch: Sequence[Encoded], *, pad_id: int, side: "Literal['left', 'right']" = "right"
) -> "dict[str, Tensor]":
    """Return the batch as padded tensors.

    The mask comes from the lengths, never from comparing with `pad_id`: that id may well be the end token, which is
    part of the text.

    Args:
        batch: at least one example.
        pad_id: what fills the places past an example's own tokens.
        side: where the padding goes. Train with "right"; "left" is for generation.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 where nothing is trained), each int64 (examples, longest).
    """
    import torch

    if not batch:
        raise ValueError("collate() was given an empty batch")
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is neither 'left' nor 'right'")
    width = max(len(example.input_ids) for example in batch)
    ids = torch.full((len(batch), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), UNTRAINED, dtype=torch.long)
    for row, example in enumerate(batch):
        start = width - len(example.input_ids) if side == "left" else 0
        place = slice(start, start + len(example.input_ids))
        tokens = torch.tensor(example.input_ids, dtype=torch.long)
        ids[row, place] = tokens
        mask[row, place] = 1
        labels[row, place] = torch.where(torch.tensor(example.trained), tokens, UNTRAINED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order in which `count` examples are seen in an epoch: a function of these three numbers only.

    A resumed run asks again and gets the same answer, on any platform: the raw stream of the counter-based generator
    Philox is fixed by its key, where the shuffles built on top of generators may change between library versions.
    """
    import numpy as np

    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(count)
    return [int(index) for index in np.argsort(draws, kind="stable")]


def epoch_steps(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return which examples each step of an epoch is made of: `size` of like length, to pad little; shortest first.

    The shuffled examples are cut into windows, and only within a window are they put in order of length: examples meet
    others in every epoch. Where their number is no multiple of `size`, the short step is drawn before that, or the
    longest examples would make it up in every epoch and count for more.

    Args:
        lengths: tokens of each example.
        size: examples of a step.
        seed, epoch: decide the order, and nothing else does.
    """

    def alike(indices: list[int]) -> list[int]:
        return sorted(indices, key=lambda index: lengths[index])

    order = epoch_order(len(lengths), seed=seed, epoch=epoch)
    whole = len(order) - len(order) % size
    window = size * max(1, min(_WINDOW_STEPS, len(order) // (_WINDOWS * size)))
    steps = [alike(order[whole:])] if whole < len(order) else []
    for start in range(0, whole, window):
        ordered = alike(order[start : min(start + window, whole)])
        steps += [ordered[at : at + size] for at in range(0, len(ordered), size)]
    # A stream of its own: the epochs below -1 are no epochs of training (-1 chooses the validation rows).
    return [steps[index] for index in epoch_order(len(steps), seed=seed, epoch=-2 - epoch)]
