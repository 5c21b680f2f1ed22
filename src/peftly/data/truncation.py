"""The longest text that fits a number of tokens."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

__all__ = ["largest_fit"]


def largest_fit(most: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest number up to `most` for which `fits` holds, taking it to hold for all below; None for none."""
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if low >= 0 else None
