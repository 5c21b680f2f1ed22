"""How many tokens go through the model at once. A step is the same whatever they are; its speed and memory are not."""

from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

__all__ = ["MicroBatches", "fast_tokens", "fitting_tokens", "saved_bytes"]

FAST_TOKENS_CPU, FAST_TOKENS = 768, 8192
"""Above these a step becomes no faster: the products keep all cores busy, and only the memory grows."""

USED_SHARE = 0.5
"""Of the free memory, what a pass may save for the way back: that needs about as much again, and others need some."""


class MicroBatches:
    """Cuts the rows of a step into what goes through the model at once.

    Attributes:
        limit: tokens of a micro-batch, unless one row alone has more.
        packed: whether rows are laid end to end; otherwise padding counts like words.
        causal: whether what packed rows begin with is there once, as where attention is causal.
        virtual: virtual tokens that each row has besides its own; they come first.
    """

    def __init__(self, limit: int, *, packed: bool = False, causal: bool = True, virtual: int = 0) -> None:
        self.limit, self.packed, self.causal, self.virtual = limit, packed, causal, virtual

    def tokens(self, lengths: Sequence[int], shared: int = 0) -> int:
        """Return how many tokens the model sees if it gets rows of these lengths at once.

        Args:
            lengths: tokens of each row.
            shared: how many of them all rows begin with.
        """
        count = len(lengths)
        if not self.packed:
            return count * (self.virtual + max(lengths))
        once = self.virtual + shared if self.causal else 0
        return count * self.virtual + sum(lengths) - (count - 1) * once

    def cut(self, lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
        """Return the places of rows in micro-batches, the shortest first; for the arguments see `tokens`."""
        cut: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
            if cut and self.tokens([lengths[other] for other in (*cut[-1], place)], shared) <= self.limit:
                cut[-1].append(place)
            else:
                cut.append([place])
        return cut

    def halve(self, lengths: Sequence[int], shared: int = 0) -> bool:
        """Let half as much of these rows go through at once; False: each goes alone already."""
        if len(self.cut(lengths, shared)) == len(lengths):
            return False
        self.limit = self.most(lengths, shared) // 2
        return True

    def most(self, lengths: Sequence[int], shared: int = 0) -> int:
        """Return how many tokens of these rows go through at once in the largest micro-batch."""
        cut = self.cut(lengths, shared)
        return max(self.tokens([lengths[place] for place in places], shared) for places in cut)


def fast_tokens(device: torch.device) -> int:
    """Return how many tokens at once make the most of a device."""
    return FAST_TOKENS_CPU if device.type == "cpu" else FAST_TOKENS


def fitting_tokens(model: nn.Module, forward: Callable[[], Tensor], tokens: int, device: torch.device) -> int:
    """Return how many tokens fit into the memory that is free, by what a pass of some of them saves.

    Args:
        model: what is trained.
        forward: a forward pass of it.
        tokens: that the pass is of.
        device: whose memory is asked for.
    """
    return int(USED_SHARE * _free_bytes(device) * tokens / max(1, saved_bytes(model, forward)))


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass saves for the backward pass, the model's own tensors left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own graph holds would never be freed

    def unpack(tensor: Tensor) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = forward()
    del output
    return sum(size for place, size in saved.items() if place not in own)


def _free_bytes(device: torch.device) -> int:
    if device.type in ("cuda", "xpu"):
        free, _ = torch.accelerator.get_memory_info(device)
        # What torch holds in reserve is free as well.
        held = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)
