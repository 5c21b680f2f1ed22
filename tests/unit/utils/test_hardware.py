"""The memory that this process uses on a device."""

import pytest
import torch

from peftly.errors import BaseModelError
from peftly.utils import peak_memory, reset_peak_memory

SIZE = 100_000_000
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_counts_memory_that_was_freed_until_it_is_reset(device):
    reset_peak_memory(device)
    before = peak_memory(device)
    filled = torch.ones(SIZE, dtype=torch.uint8, device=device)
    del filled
    assert 0.9 * SIZE < peak_memory(device) - before < 1.2 * SIZE
    reset_peak_memory(device)
    assert peak_memory(device) - before < 0.1 * SIZE


def test_a_device_that_does_not_exist_has_no_memory():
    with pytest.raises(BaseModelError, match="cuda:99"):
        peak_memory("cuda:99")
