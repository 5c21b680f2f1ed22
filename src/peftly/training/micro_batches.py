"""The number of tokens that go through the model at once. It decides speed and memory, never the result of a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from peftly.utils import available_memory

__all__ = ["MicroBatchSplitter", "fast_tokens", "fitting_tokens", "free_bytes", "memory_of_device", "saved_bytes"]

FAST_TOKENS_CPU, FAST_TOKENS = 768, 8192
"""Tokens above which a step becomes no faster: the matrix products keep all cores busy, and only the memory grows."""

USED_SHARE = 0.5
"""Fraction of free memory that saved activations may take; the backward pass needs about as much again."""

_SIMULATED: ContextVar[tuple[torch.device, Callable[[], int]] | None] = ContextVar("simulated device", default=None)


@contextmanager
def memory_of_device(device: torch.device, free_bytes: Callable[[], int]) -> Iterator[None]:
    """Choose micro-batches inside the block for another device than that of the model, which has no weights.

    Args:
        device: device that decides.
        free_bytes: function that returns its free memory.
    """
    token = _SIMULATED.set((device, free_bytes))
    try:
        yield
    finally:
        _SIMULATED.reset(token)


class MicroBatchSplitter:
    """Splits the examples of a step into micro-batches.

    Attributes:
        limit: largest number of tokens in a micro-batch of more than one example.
        packed: whether examples are packed; otherwise padding counts like tokens.
        causal: whether a common prefix of packed examples is computed once, as causal attention allows.
        num_virtual_tokens: virtual tokens that every example gets, in front of its own tokens.
    """

    def __init__(self, limit: int, *, packed: bool = False, causal: bool = True, num_virtual_tokens: int = 0) -> None:
        self.limit, self.packed, self.causal, self.num_virtual_tokens = limit, packed, causal, num_virtual_tokens

    def num_tokens(self, lengths: Sequence[int], shared: int = 0) -> int:
        """Return how many tokens the model computes for examples of these lengths in one micro-batch.

        Args:
            lengths: number of tokens of each example.
            shared: number of tokens in the common prefix of all examples.
        """
        count = len(lengths)
        if not self.packed:
            return count * (self.num_virtual_tokens + max(lengths))
        shared = self.num_virtual_tokens + shared if self.causal else 0
        return count * self.num_virtual_tokens + sum(lengths) - (count - 1) * shared

    def split(self, lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
        """Return the indices of the examples of each micro-batch, shortest first; see `num_tokens` for arguments."""
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
            if groups and self.num_tokens([lengths[i] for i in (*groups[-1], index)], shared) <= self.limit:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def halve(self, lengths: Sequence[int], shared: int = 0) -> bool:
        """Halve the limit for these examples; return False if every micro-batch has one example already."""
        if len(self.split(lengths, shared)) == len(lengths):
            return False
        self.limit = self.largest(lengths, shared) // 2
        return True

    def largest(self, lengths: Sequence[int], shared: int = 0) -> int:
        """Return the number of tokens in the largest micro-batch of these examples."""
        groups = self.split(lengths, shared)
        return max(self.num_tokens([lengths[index] for index in group], shared) for group in groups)


def fast_tokens(device: torch.device) -> int:
    """Return the number of tokens from which on a device becomes no faster."""
    simulated = _SIMULATED.get()
    device = device if simulated is None else simulated[0]
    return FAST_TOKENS_CPU if device.type == "cpu" else FAST_TOKENS


def fitting_tokens(model: nn.Module, forward: Callable[[], Tensor], tokens: int, device: torch.device) -> int:
    """Return how many tokens fit into the free memory, estimated from the activations that one forward pass saves.

    Args:
        model: model under training.
        forward: a forward pass of the model.
        tokens: number of tokens in that pass.
        device: device whose memory is used.
    """
    return int(USED_SHARE * free_bytes(device) * tokens / max(1, saved_bytes(model, forward)))


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass saves for the backward pass, without parameters and buffers."""
    # By storage, not by address: tensors without data have none.
    of_model = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an output that its own graph holds would never be freed

    def unpack(tensor: Tensor) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = forward()
    del output
    return sum(size for key, size in saved.items() if key not in of_model)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nothing uses, in bytes."""
    simulated = _SIMULATED.get()
    if simulated is not None:
        return simulated[1]()
    if device.type in ("cuda", "xpu"):
        free, _ = torch.accelerator.get_memory_info(device)
        # Memory in torch's allocator that no tensor uses is free as well.
        cached = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
        return int(free + cached)
    return available_memory()
