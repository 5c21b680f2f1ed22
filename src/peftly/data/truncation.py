"""Search for the longest text that fits a number of tokens."""

from collections.abc import Callable

__all__ = ["largest_fit"]


def largest_fit(maximum: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest size that fits, found by binary search.

    Args:
        maximum: largest size to try.
        fits: whether a size fits. A size below a fitting size is assumed to fit, too.

    Returns:
        A size from 0 to `maximum`, or None if no size fits.
    """
    low, high = -1, maximum
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if low >= 0 else None
