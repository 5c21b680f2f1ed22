"""Digests of examples, by which a finished run finds its training and held-out examples again."""

import base64
import binascii
import json
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import fields
from hashlib import blake2b

from peftly.data.storage import LazySequence
from peftly.data.types import Example
from peftly.errors import DataError

__all__ = ["ExampleDigests", "example_digest", "pack_digests", "unpack_digests"]


def example_digest(example: Example) -> int:
    """Return a number of 64 bits that is equal for two examples with the same prompt and answer.

    Spaces at both ends of an answer do not count, since settings can add one.
    """
    parts = {field.name: getattr(example, field.name) for field in fields(example) if field.compare}
    parts["completion"] = example.completion.strip()
    text = json.dumps({name: part for name, part in parts.items() if part}, sort_keys=True, default=str)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class ExampleDigests(LazySequence[int]):
    """The `example_digest` of each of some examples, computed on access: only a run that is stored needs them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._examples)

    def element(self, index: int) -> int:
        """Return the digest of the example with this index."""
        return example_digest(self._examples[index])


def pack_digests(digests: Iterable[int]) -> str:
    """Return digests as text for a JSON file; `unpack_digests` is the inverse."""
    return base64.b64encode(_little_endian(array("Q", digests)).tobytes()).decode()


def unpack_digests(text: str) -> Sequence[int]:
    """Return the digests that `pack_digests` wrote.

    Raises:
        DataError: the text is damaged.
    """
    try:
        digests = array("Q", base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"the digests of the examples are damaged ({error})") from None
    return _little_endian(digests)


def _little_endian(digests: "array[int]") -> "array[int]":
    """Return digests between the byte order of this machine and that of files."""
    if sys.byteorder == "big":
        digests = digests[:]
        digests.byteswap()
    return digests
