"""The largest memory of the process during a training."""

import torch
from torch import nn

from peftly.utils import memory_of_process, peak_memory, reset_peak_memory, return_free_memory

__all__ = ["PeakMemory"]


GROWN_BYTES = 64e6
"""Memory that a process takes since the beginning of its training, from which on the free part is given back."""


class PeakMemory:
    """Measures the largest memory of this process since the measurement began.

    Attributes:
        devices: accelerators that hold parameters of the model, or the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begin the measurement, which resets the statistics of torch on these devices.

        Args:
            model: model to train, whose loading does not count.
        """
        devices = {parameter.device for parameter in model.parameters()}
        self.devices = {device for device in devices if device.type not in ("cpu", "meta")} or {torch.device("cpu")}
        self._at_begin = memory_of_process()
        for device in self.devices:
            reset_peak_memory(device)

    def since(self, earlier: int | None) -> int:
        """Return the largest memory in bytes, summed over the devices.

        Args:
            earlier: largest memory of an earlier part of the training, in another process; None: there is none.
        """
        return max(earlier or 0, sum(peak_memory(device) for device in self.devices))

    def return_free(self) -> None:
        """Return the free memory of the heap to the system, unless the process has hardly grown."""
        if memory_of_process() - self._at_begin > GROWN_BYTES:
            return_free_memory()
