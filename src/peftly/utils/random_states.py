"""The global random generators of Python, NumPy and torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

__all__ = ["same_random_states"]


@contextmanager
def same_random_states() -> Iterator[None]:
    """Leave the global random generators as they were before the block."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
