"""Storage of examples and rows by the million: sequences that make their elements on access, and byte strings on disk.

A data set takes a few bytes of memory per row: byte strings that take much memory are stored in a file without a name,
which the operating system deletes when the process ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Generic, TypeVar, overload

from peftly.cache import cache_home
from peftly.errors import DataError

__all__ = ["ByteStore", "LazySequence"]

T = TypeVar("T")

MEMORY_BYTES = 2**24
"""Byte strings of more bytes than this are stored in a file."""

_BLOCK_BYTES = 2**20
"""Bytes that are read or written at once."""


class LazySequence(Sequence[T], Generic[T]):
    """A sequence that makes an element when it is asked for. A slice is a list, and equal elements make it equal."""

    @abstractmethod
    def element(self, index: int) -> T:
        """Return an element.

        Args:
            index: index of the element, from 0 to below the length.
        """

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return one element, or a list of elements."""
        if isinstance(index, slice):
            return [self.element(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"index {index} of {len(self)} elements")
        return self.element(number)

    def __iter__(self) -> Iterator[T]:
        """Yield the elements in order."""
        return map(self.element, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare the elements with those of another sequence."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the name of the class and the number of elements."""
        return f"<{type(self).__name__} of {len(self):,}>"


class ByteStore(LazySequence[bytes]):
    """Byte strings, in memory or in a file without a name in peftly's cache folder."""

    def __init__(self) -> None:
        self._ends = array("q", [0])
        self._tail = bytearray()  # the bytes that are not in the file
        self._file: IO[bytes] | None = None
        self._file_bytes = 0

    def __len__(self) -> int:
        """Return the number of byte strings."""
        return len(self._ends) - 1

    def append(self, data: bytes) -> None:
        """Add a byte string at the end.

        Args:
            data: the byte string.

        Raises:
            DataError: the file cannot be written: the disk is full, for instance.
        """
        self._tail += data
        self._ends.append(self._ends[-1] + len(data))
        if len(self._tail) > (MEMORY_BYTES if self._file is None else _BLOCK_BYTES):
            self._write_tail()

    def element(self, index: int) -> bytes:
        """Return the byte string with this index."""
        return self._read(self._ends[index], self._ends[index + 1])

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes in order, in blocks that do not depend on the ends of the byte strings."""
        for start in range(0, self._ends[-1], _BLOCK_BYTES):
            yield self._read(start, min(start + _BLOCK_BYTES, self._ends[-1]))

    def _read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        data = b""
        if self._file is not None and start < self._file_bytes:
            data = os.pread(self._file.fileno(), min(end, self._file_bytes) - start, start)
        if end > self._file_bytes:
            data += self._tail[max(0, start - self._file_bytes) : end - self._file_bytes]
        return data

    def _write_tail(self) -> None:
        folder = cache_home()
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 -- it stays open
            written = memoryview(self._tail)
            while written:
                written = written[self._file.write(written) :]
        except OSError as error:
            raise DataError(
                f"{folder}: cannot store {self._ends[-1]:,} bytes of data there ({error.strerror}); free some space, "
                "or set PEFTLY_HOME to a folder with more"
            ) from None
        self._file_bytes += len(self._tail)
        self._tail = bytearray()
