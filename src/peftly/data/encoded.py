"""Encoded examples by the million: one byte string per example, which becomes an `EncodedExample` on access."""

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence

from peftly.data.storage import ByteStore, LazySequence
from peftly.data.types import EncodedExample

__all__ = ["EncodedExamples", "input_lengths", "record_bytes", "token_counts"]

_HEADER = struct.Struct("=7i")
"""Number of removed tokens, and the lengths of the six lists of `_parts`; -1: the list is None."""


class EncodedExamples(LazySequence[EncodedExample]):
    """Encoded examples of a split.

    Attributes:
        num_tokens: `EncodedExample.num_tokens` of each example.
        num_inputs: length of `EncodedExample.input_ids` of each example.
    """

    def __init__(self, examples: Iterable[EncodedExample] = ()) -> None:
        """Store examples.

        Args:
            examples: the examples; `append` adds others.
        """
        self._records = ByteStore()
        self.num_tokens = array("q")
        self.num_inputs = array("q")
        for example in examples:
            self.append(example)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._records)

    def append(self, example: EncodedExample) -> None:
        """Add an example at the end.

        Raises:
            DataError: the disk is full.
        """
        self._records.append(_record(example))
        self.num_tokens.append(example.num_tokens)
        self.num_inputs.append(len(example.input_ids))

    def element(self, index: int) -> EncodedExample:
        """Return the example with this index. It knows its `position`."""
        example = _example(self._records.element(index))
        object.__setattr__(example, "position", (id(self), index))
        return example

    def record_bytes(self) -> Iterator[bytes]:
        """Yield the bytes that all examples are stored as."""
        return self._records.blocks()


def record_bytes(examples: Iterable[EncodedExample]) -> Iterator[bytes]:
    """Yield bytes that determine the examples and their order, for a hash."""
    return examples.record_bytes() if isinstance(examples, EncodedExamples) else map(_record, examples)


def token_counts(examples: Sequence[EncodedExample]) -> Sequence[int]:
    """Return the number of tokens of each example, which the model processes."""
    if isinstance(examples, EncodedExamples):
        return examples.num_tokens
    return [example.num_tokens for example in examples]


def input_lengths(examples: Sequence[EncodedExample]) -> Sequence[int]:
    """Return the number of `input_ids` of each example."""
    if isinstance(examples, EncodedExamples):
        return examples.num_inputs
    return [len(example.input_ids) for example in examples]


def _parts(example: EncodedExample) -> tuple[Sequence[int] | None, ...]:
    label = None if example.label is None else (example.label,)
    return example.input_ids, label, example.tags, example.answer, example.token_type_ids, example.prompt_positions


def _record(example: EncodedExample) -> bytes:
    parts = _parts(example)
    numbers = array("i")
    for part in parts:
        if part:
            numbers.extend(part)
    header = _HEADER.pack(example.num_truncated, *(-1 if part is None else len(part) for part in parts))
    return header + numbers.tobytes() + bytes(example.trained)


def _example(record: bytes) -> EncodedExample:
    num_truncated, *lengths = _HEADER.unpack_from(record)
    end = len(record) - lengths[0]
    numbers = array("i", record[_HEADER.size : end]).tolist()
    parts: list[list[int] | None] = []
    start = 0
    for length in lengths:
        parts.append(None if length < 0 else numbers[start : start + length])
        start += max(0, length)
    ids, label, tags, answer, types, positions = parts
    return EncodedExample(
        ids or [],
        list(map(bool, record[end:])),
        num_truncated,
        label=label[0] if label else None,
        tags=tags,
        answer=answer,
        token_type_ids=types,
        prompt_positions=tuple(positions or ()),
    )
