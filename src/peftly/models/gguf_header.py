"""The header of a GGUF file, checked before libraries that trust its counts, lengths and offsets read the file."""

import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from peftly.errors import BaseModelError

__all__ = ["GgufHeader", "read_gguf_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's numbers for the types of single values, and the codes of `struct`."""

_STRING, _ARRAY = 8, 9
_MAX_ENTRIES, _MAX_TENSORS, _MAX_DIMENSIONS = 1 << 16, 1 << 17, 4
_MAX_ELEMENTS = 1 << 22
"""Most elements of all arrays together: readers take microseconds for each. Vocabularies with merges have a million."""

_MAX_NAME = 1 << 16
"""Most bytes of a name, and of a string in an array."""

_BLOCK = re.compile(r"blk\.(\d{1,9})\.", re.ASCII)

_SMALL = 1024
"""Sizes up to this number are accepted although no tensor has this size."""


class GgufHeader(NamedTuple):
    """Header of a GGUF file.

    Attributes:
        metadata: values by their keys, without arrays.
        shapes: shapes of the tensors by their names; the first number is the length of a row.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        BaseModelError: the file is not in GGUF's format, is cut off, or its header contradicts itself.
    """
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
            if magic != _MAGIC:
                raise BaseModelError(f"{file} is not a GGUF file: it starts with {magic!r}")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _Reader(content).read()
        if header.metadata.get("general.type", "model") == "model":  # files of adapters state no sizes
            _check_sizes(header)
    except OSError as error:
        raise BaseModelError(f"{file} cannot be read: {error.strerror or error}") from error
    except struct.error as error:
        raise BaseModelError(f"{file} is damaged: it ends in the middle of its header") from error
    except _DamagedError as error:
        raise BaseModelError(f"{file} is damaged: {error}") from error
    return header


class _DamagedError(Exception):
    """The header of a GGUF file contradicts itself or the size of the file."""


class _Reader:
    """Reads a header from its beginning. Struct raises `struct.error` behind the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.position, self.elements = content, len(_MAGIC), 0

    def read(self) -> GgufHeader:
        version = self.number("I")
        if version not in _VERSIONS:
            raise _DamagedError(f"its version is {version}, and versions 2 and 3 are read")
        num_tensors, num_entries = self.number("Q"), self.number("Q")
        for number, name, limit in ((num_tensors, "tensors", _MAX_TENSORS), (num_entries, "entries", _MAX_ENTRIES)):
            if number > limit:
                raise _DamagedError(f"its header announces {number} {name}")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self.string(_MAX_NAME)
            if key in metadata:
                raise _DamagedError(f"its header has {key[:60]!r} twice")
            metadata[key] = self.value(key)
        tensors = [self.tensor() for _ in range(num_tensors)]
        self.check_tensors(tensors, metadata.get("general.alignment", 32))
        values = {key: value for key, value in metadata.items() if value is not None}
        return GgufHeader(values, {name: shape for name, shape, _, _ in tensors})

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.position)
        self.position += struct.calcsize(code)
        return value

    def string(self, limit: int) -> str:
        start = self.position + 8
        self.skip_string(limit)
        try:
            return self.content[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _DamagedError("a text in its header is not UTF-8") from error

    def skip_string(self, limit: int) -> None:
        length = self.number("Q")
        if length > limit:
            raise _DamagedError(f"a string in its header has {length} bytes")
        self.skip(length)

    def skip(self, length: int) -> None:
        self.position += length
        if self.position > len(self.content):
            raise _DamagedError("it ends in the middle of its header")

    def value(self, key: str) -> Any:
        """Return the next value; None for an array."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string(len(self.content))
        if kind != _ARRAY:
            raise _DamagedError(f"{key[:60]!r} is of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        self.elements += count
        if self.elements > _MAX_ELEMENTS:
            raise _DamagedError(f"{key[:60]!r} announces {count} elements")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self.skip_string(_MAX_NAME)
        else:
            raise _DamagedError(f"{key[:60]!r} is an array of the type {kind}, and numbers and strings are read")
        return None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of the next tensor."""
        name, num_dimensions = self.string(_MAX_NAME), self.number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise _DamagedError(f"tensor {name[:60]!r} has {num_dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(num_dimensions))
        return name, shape, self.number("I"), self.number("Q")

    def check_tensors(self, tensors: list[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> None:
        """Do nothing if all tensors have different names and known types, and lie inside the file."""
        from gguf.constants import GGML_QUANT_SIZES

        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise _DamagedError(f"its alignment is {alignment!r}, and should be a power of two")
        start = -(-self.position // alignment) * alignment
        sizes: dict[int, tuple[int, int]] = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        names: set[str] = set()
        for name, shape, kind, offset in tensors:
            if name in names:
                raise _DamagedError(f"it has two tensors {name[:60]!r}")
            names.add(name)
            if kind not in sizes:
                raise _DamagedError(f"tensor {name[:60]!r} is of the unknown type {kind}")
            if 0 in shape:
                raise _DamagedError(f"tensor {name[:60]!r} has the shape {shape}")
            block, block_bytes = sizes[kind]
            if (shape[0] if shape else 1) % block:
                raise _DamagedError(f"tensor {name[:60]!r} has rows of {shape[0]} numbers in blocks of {block}")
            if offset % alignment:
                raise _DamagedError(f"tensor {name[:60]!r} is not aligned to {alignment} bytes")
            if start + offset + math.prod(shape) // block * block_bytes > len(self.content):
                raise _DamagedError(f"tensor {name[:60]!r} ends behind the end of the file")


def _check_sizes(header: GgufHeader) -> None:
    """Do nothing if the tensors can have the sizes of the model that the header states.

    A model of the stated sizes is built before the first tensor is read, whatever memory and time that takes.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise _DamagedError("its header has no general.architecture")
    largest = max([_SMALL, *(size for shape in header.shapes.values() for size in shape)])
    for key, value in header.metadata.items():
        is_size = key.startswith(f"{architecture}.") and not key.endswith(("context_length", "window"))
        if is_size and isinstance(value, int) and not 0 <= value <= largest:
            raise _DamagedError(f"{key} is {value}, and no tensor has this size")
    blocks = {int(match[1]) for match in map(_BLOCK.match, header.shapes) if match}
    stated, width = (header.metadata.get(f"{architecture}.{name}") for name in ("block_count", "embedding_length"))
    if blocks and stated != max(blocks) + 1:
        raise _DamagedError(f"{architecture}.block_count is {stated}, and the last tensor is of block {max(blocks)}")
    embeddings = header.shapes.get("token_embd.weight", (width,))
    if embeddings[:1] != (width,):
        raise _DamagedError(f"{architecture}.embedding_length is {width}, and token_embd.weight has {embeddings}")
