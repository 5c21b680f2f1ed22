"""Bound of the memory that an adapter on disk may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch.utils._python_dispatch import TorchDispatchMode

from peftly.adapters.files import CONFIG, TENSORS
from peftly.adapters.folder import AdapterFolder
from peftly.errors import AdapterError
from peftly.utils import stops_held

__all__ = ["AllocationLimit"]

_ALWAYS_ALLOWED = 2**20


class AllocationLimit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which no more tensors can be created than those in the files of an adapter need.

    A rank of a billion, in a file of a few kilobytes, is refused before memory is allocated. Counted are the functions
    of torch that take the shape of a new tensor (`torch.empty`, `torch.zeros`).

    Ctrl-C waits until the end of the block, since it must not leave torch in this mode.

    Raises:
        AdapterError: the new tensors have more than twice the elements of the files.
    """

    def __init__(self, folder: AdapterFolder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stops = stops_held()
        self.folder = folder
        self.elements = folder.num_elements()
        self.left = 2 * self.elements + _ALWAYS_ALLOWED

    def __enter__(self) -> Self:
        """Enter the mode, with stop signals held back."""
        self._stops.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the mode, and take the signals that have come."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stops.__exit__(*error)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count the elements of a new tensor, and call the function."""
        if args and isinstance(args[0], list) and all(isinstance(size, int) for size in args[0]):
            self.left -= math.prod(args[0])
            if self.left < 0:
                raise AdapterError(
                    f"the settings in {self.folder.path / CONFIG} need tensors with many more elements than "
                    f"{self.folder.path / TENSORS} has, which are {self.elements:,}"
                )
        return func(*args, **(kwargs or {}))
