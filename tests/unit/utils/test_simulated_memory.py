"""Memory of computations on tensors without data."""

import torch
from torch.utils.checkpoint import checkpoint

from peftly.utils import SimulatedMemory


def test_live_and_peak_bytes_are_those_of_the_tensors():
    with SimulatedMemory() as memory:
        first = torch.zeros(100, 10)
        second = first + 1
        view = second[:50]
        assert memory.live == memory.peak == 8000
        del first, second
        assert memory.live == 4000
        del view
        assert (memory.live, memory.peak) == (0, 8000)


def test_integers_stay_real_and_code_sees_the_cpu():
    with SimulatedMemory():
        ids, states = torch.arange(3), torch.ones(4, 2)
        assert states.device.type == "cpu"
        assert not states.is_meta
        assert states[ids].shape == (3, 2)
        assert ids.tolist() == [0, 1, 2]
        assert bool((states > 2).all())
        assert float(states.sum()) == 1.0
    assert states.device.type == "meta"


def test_a_checkpointed_block_is_computed_again_without_data():
    """The backward pass saw another device than the forward pass."""
    seen = []

    def block(x):
        seen.append(x.device.type)
        return (x * 2).exp()

    with SimulatedMemory() as memory:
        x = torch.ones(8, 8, requires_grad=True)
        checkpoint(block, x, use_reentrant=False).sum().backward()
        assert x.grad.shape == (8, 8)
    assert seen == ["cpu", "cpu"]
    assert memory.peak >= 3 * 256


def test_repeated_operations_count_as_the_first_one():
    peaks = []
    for _ in range(2):
        with SimulatedMemory() as memory:
            x = torch.ones(64, 64)
            y = torch.nn.functional.layer_norm(x @ x, (64,)).mul_(2)
        peaks.append(memory.peak)
        assert y.shape == (64, 64)
    assert peaks[0] == peaks[1]
