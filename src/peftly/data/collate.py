"""Which examples come when, and how a handful of them becomes tensors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftly.data.types import UNTRAINED, EncodedExample

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor

__all__ = ["collate", "epoch_order", "epoch_steps"]

_WINDOWS = 4
_WINDOW_STEPS = 50
"""An epoch has at least so many windows, none of more steps than this; see `epoch_steps`."""


def collate(
    batch: Sequence[EncodedExample], *, pad_id: int, side: "Literal['left', 'right']" = "right"
) -> "dict[str, Tensor]":
    """Return the batch as padded tensors.

    The mask comes from the lengths, never from comparing with `pad_id`: that id may well be the end token, which is
    part of the text.

    Args:
        batch: at least one example.
        pad_id: what fills the places past an example's own tokens.
        side: where the padding goes. Train with "right"; "left" is for generation.

    Returns:
        Tensors of int64: `input_ids` and `attention_mask` (examples, longest); `token_type_ids` likewise, where the
        examples have them; `labels` (examples, most targets), -100 where nothing is trained. Labels of tokens stand in
        the columns of their tokens; a class is the one label of its row. Where a template marks places, `places`
        (examples, most places), filled up with -1; they count an example's own tokens, whatever the padding.
    """
    import torch

    if not batch:
        raise ValueError("collate() was given an empty batch")
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is neither 'left' nor 'right'")

    def filled(rows: "Sequence[Sequence[int]]", filler: int) -> "Tensor":
        width = max(map(len, rows))
        table = torch.full((len(rows), width), filler, dtype=torch.long)
        for place, row in enumerate(rows):
            start = width - len(row) if side == "left" else 0
            table[place, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        return table

    tensors = {
        "input_ids": filled([example.input_ids for example in batch], pad_id),
        "attention_mask": filled([[1] * len(example.input_ids) for example in batch], 0),
        "labels": filled([example.targets for example in batch], UNTRAINED),
    }
    if batch[0].token_type_ids is not None:
        tensors["token_type_ids"] = filled([example.token_type_ids or [] for example in batch], 0)
    if any(example.prompt_positions for example in batch):
        tensors["prompt_positions"] = filled([example.prompt_positions for example in batch], -1)
    return tensors


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
