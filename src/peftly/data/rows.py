"""Rows of a file or data set, with the location of each row for error messages."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from peftly.data.storage import ByteStore, LazySequence
from peftly.errors import DataError

__all__ = [
    "Rows",
    "StoredRows",
    "check_characters",
    "describe",
    "first_line",
    "join_rows",
    "quoted",
    "rows_of_objects",
]


class StoredRows(LazySequence[dict[str, Any]]):
    """Rows that are stored as JSON texts and parsed on access.

    Attributes:
        fields: names of the fields that any row has, in order of appearance.
    """

    def __init__(self) -> None:
        self._texts = ByteStore()
        self.fields: list[str] = []
        self._fields: set[str] = set()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._texts)

    def append(self, row: Mapping[str, Any], text: str | None = None) -> None:
        """Add a row at the end.

        Args:
            row: fields and values. A value that JSON does not have, such as a date, becomes null.
            text: the row as JSON, if it is known.

        Raises:
            DataError: the disk is full.
        """
        if not self._fields.issuperset(row):
            self.fields += [field for field in row if field not in self._fields]
            self._fields.update(row)
        if text is None:
            text = json.dumps(row, ensure_ascii=False, default=lambda _: None)
        self._texts.append(text.encode())

    def element(self, index: int) -> dict[str, Any]:
        """Return the row with this index."""
        row: dict[str, Any] = json.loads(str(self._texts.element(index), "utf-8"))
        return row


class _PickedRows(LazySequence[dict[str, Any]]):
    """Rows of other sequences.

    Attributes:
        fields: names of the fields.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[dict[str, Any]]],
        ends: Sequence[int],
        find: Callable[[int], tuple[int, int]],
        fields: list[str],
    ) -> None:
        """Prepare the rows.

        Args:
            parts: the other sequences.
            ends: number of rows up to the end of each of them.
            find: function that returns the number of the sequence, and the index in it, by the index of a row.
            fields: names of the fields.
        """
        self.fields = fields
        self._parts, self._ends, self._find = parts, ends, find

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._ends[-1]

    def element(self, index: int) -> dict[str, Any]:
        """Return the row with this index."""
        number, row = self._find(index)
        return self._parts[number][row]


@dataclass(frozen=True)
class Rows:
    """Rows of one file or of one split of a data set.

    Attributes:
        name: file or data set as the user wrote it; the name of the split for rows given in memory.
        rows: fields and values of each row.
        lines: number of the line on which each row starts, for file formats with lines.
        notes: assumptions of the reader, one sentence each.
        class_names: names of the classes in the order of their numbers, by field, where the file or data set has them.
        locate: function that returns the location of a row by its index, for rows of several files or some of the rows.
        hub: data sets on the Hub that the rows are from.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    locate: Callable[[int], str] | None = field(default=None, compare=False)
    hub: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def location(self, index: int) -> str:
        """Return the location of a row for messages, such as "tweets.jsonl: line 7".

        Args:
            index: index of the row, counted from 0.
        """
        if self.locate is not None:
            return self.locate(index)
        return f"{self.name}: " + (f"line {self.lines[index]}" if self.lines else f"row {index + 1}")

    @cached_property
    def fields(self) -> list[str]:
        """Names of the fields that any row has, in order of appearance."""
        stored: list[str] | None = getattr(self.rows, "fields", None)
        if stored is not None:
            return stored
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def select(self, indices: Sequence[int]) -> "Rows":
        """Return some of the rows, which keep their locations.

        Args:
            indices: indices of these rows.
        """
        rows = _PickedRows([self.rows], [len(indices)], lambda index: (0, indices[index]), self.fields)
        return replace(self, rows=rows, lines=None, locate=lambda index: self.location(indices[index]))


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several files as one, with the location of each row in its file.

    Args:
        parts: rows of each file, at least one.
    """
    if len(parts) == 1:
        return parts[0]
    ends = list(accumulate(map(len, parts)))

    def find(index: int) -> tuple[int, int]:
        number = bisect_right(ends, index)
        return number, index - (ends[number - 1] if number else 0)

    def locate(index: int) -> str:
        number, row = find(index)
        return parts[number].location(row)

    class_names: dict[str, list[str]] = {}
    for part in parts:
        for name, classes in part.class_names.items():
            class_names[name] = list(dict.fromkeys([*class_names.get(name, ()), *classes]))
    fields = list(dict.fromkeys(name for part in parts for name in part.fields))
    return Rows(
        " + ".join(part.name for part in parts),
        _PickedRows([part.rows for part in parts], ends, find, fields),
        notes=tuple(note for part in parts for note in part.notes),
        class_names=class_names,
        locate=locate,
        hub=tuple(dict.fromkeys(source for part in parts for source in part.hub)),
    )


def rows_of_objects(name: str, objects: Sequence[object], *, can_have_surrogates: bool = True) -> Rows:
    """Return parsed JSON values, or objects of a Python list, as rows.

    Args:
        name: name of the rows.
        objects: one mapping of field to value per row.
        can_have_surrogates: whether to search the texts for half characters; see `check_characters`.

    Raises:
        DataError: an object is not a mapping with named fields, or a text has half a character.
    """
    rows = []
    for number, row in enumerate(objects, start=1):
        location = f"{name}: row {number}"
        if not isinstance(row, Mapping) or not all(isinstance(field, str) for field in row):
            kind = "an object without named fields" if isinstance(row, Mapping) else describe(row)
            raise DataError(f"{location} is {kind}; every row must be an object with named fields")
        if can_have_surrogates:
            check_characters(location, row)
        rows.append(dict(row))
    return Rows(name, rows)


def check_characters(location: str, row: Mapping[str, Any]) -> None:
    """Check the texts of a row for half characters (lone surrogates), which JSON can escape and no tokenizer takes.

    Args:
        location: location of the row, for the error message.
        row: fields and values.

    Raises:
        DataError: a text has half a character.
    """
    try:
        json.dumps(dict(row), ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise DataError(f"{location} holds half of a character ({half}); write both halves or neither") from None


_KIND_NAMES = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def describe(value: object) -> str:
    """Return the kind of a value in JSON's terms, for messages."""
    return "null" if value is None else _KIND_NAMES.get(type(value), f"a {type(value).__name__}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a full stop, for messages in brackets."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def quoted(names: Iterable[str]) -> str:
    """Return names in quotes and separated by commas, for messages."""
    return ", ".join(map(repr, names)) or "none"
