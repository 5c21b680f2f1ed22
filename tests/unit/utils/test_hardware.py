"""The memory that this process uses on a device."""

import psutil
import pytest
import torch

from peftly.errors import BaseModelError
from peftly.utils import available_memory, hardware, peak_memory, reset_peak_memory, return_free_memory

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


@pytest.mark.parametrize(
    ("names", "cached"),
    [
        (("memory.max", "memory.current"), "inactive_file"),
        (("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_the_limit_of_a_container_counts(names, cached, tmp_path, monkeypatch):
    """A training in a container of 4 GB on a machine of 64 GB was given the memory of the machine."""
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    machine = available_memory()
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    (limit.parent / "memory.stat").write_text(f"anon 5\n{cached} 1000\n")
    used.write_text("3000\n")
    for text, expected in (("4000\n", 2000), ("3500\n", 1500), ("1500\n", 0)):
        limit.write_text(text)
        assert available_memory() == expected
    for text in ("max\n", "9223372036854771712\n"):
        limit.write_text(text)
        assert available_memory() == pytest.approx(machine, rel=0.2)


@pytest.mark.skipif(hardware._trim is None, reason="another C library than glibc")
def test_free_blocks_of_the_heap_go_back_to_the_system():
    blocks = [torch.ones(20_000) for _ in range(3000)]  # 80 KB each: in the heap, not in pages of their own
    blocks = blocks[::100]
    before = psutil.Process().memory_info().rss
    return_free_memory()
    assert before - psutil.Process().memory_info().rss > 0.8 * 3000 * 80_000
    assert all(bool((block == 1).all()) for block in blocks)
