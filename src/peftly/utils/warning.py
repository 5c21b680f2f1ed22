"""Warnings, once for all processes of a launch."""

import warnings

from peftly.utils.environment import is_main_process

__all__ = ["warn"]


def warn(text: str, *, stacklevel: int = 2) -> None:
    """Warn the user, on the main process only: all processes of a launch meet the same problem.

    Args:
        text: one sentence.
        stacklevel: number of calls between the line that the warning names and this function, as of `warnings.warn`
            in the caller.
    """
    if is_main_process():
        warnings.warn(text, stacklevel=stacklevel + 1)
