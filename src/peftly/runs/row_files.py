"""Rows to files, in the formats that are read: JSON Lines, JSON, CSV, TSV and Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from peftly.data import first_line
from peftly.errors import DataError
from peftly.utils import append, replacing_file, sync, write_new_file

__all__ = ["check_row_file", "write_rows"]

_ROWS = 1000
"""Rows that are written at once."""

Row = Mapping[str, Any]


def check_row_file(path: Path) -> None:
    """Check that a file of rows can be written, by the ending of its name.

    Raises:
        DataError: the ending names no format, the name is that of a folder, or the package for the format is missing.
    """
    if path.suffix.lower() not in _WRITERS:
        raise DataError(f"{path}: the ending of the name says the format; known are {' '.join(_WRITERS)}")
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the name of a file, such as {path / 'predictions.jsonl'}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            raise DataError(f"{path}: Parquet files need the package pyarrow: pip install 'peftly[datasets]'") from None


def write_rows(path: Path, rows: Iterable[Row], fields: Sequence[str]) -> None:
    """Write rows to a file, complete or not at all.

    Tables have a column for each field: a value that is no text is written as JSON writes it, and a value that a row
    lacks as an empty cell.

    Args:
        path: file to write; the ending of its name determines the format.
        rows: fields and values of each row.
        fields: names of the fields, in the order of the columns.

    Raises:
        DataError: Parquet has no type for the values of a field.
        OSError: the file cannot be written; an earlier one is as it was.
    """
    with replacing_file(path) as scratch:
        if path.suffix.lower() == ".parquet":
            _write_parquet(path, scratch, rows, fields)
            return
        write_new_file(scratch)
        texts = _WRITERS[path.suffix.lower()](iter(rows), fields)
        while part := "".join(islice(texts, _ROWS)):
            append(scratch, part.encode())
        sync(scratch)


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # a number of a Parquet file that JSON lacks becomes null
        text = json.dumps(value, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _json_lines(rows: Iterator[Row], _fields: Sequence[str]) -> Iterator[str]:
    return (f"{_json(dict(row))}\n" for row in rows)


def _json_list(rows: Iterator[Row], _fields: Sequence[str]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + _json(dict(row))
        before = ",\n"
    yield "\n]\n" if before != "[\n" else "[]\n"


def _table(separator: str) -> Callable[[Iterator[Row], Sequence[str]], Iterator[str]]:
    """Return a function that yields the lines of a table."""

    def lines(rows: Iterator[Row], fields: Sequence[str]) -> Iterator[str]:
        yield _line(fields, separator)
        for row in rows:
            yield _line([_cell(row.get(name)) for name in fields], separator)

    return lines


def _line(cells: Sequence[str], separator: str) -> str:
    text = io.StringIO()
    # Before Python 3.13, csv quotes a lone carriage return only if it is part of the line terminator.
    csv.writer(text, delimiter=separator, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else _json(value)


def _write_parquet(path: Path, scratch: Path, rows: Iterable[Row], fields: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    listed = list(rows)
    try:
        table = pyarrow.table({name: [row.get(name) for row in listed] for name in fields})
        pyarrow.parquet.write_table(table, scratch)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: Parquet cannot hold these values ({first_line(error)}); write .jsonl") from None
    sync(scratch)


_WRITERS: dict[str, Callable[[Iterator[Row], Sequence[str]], Iterator[str]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _json_lines,
}
"""Texts of rows by the ending of a file; Parquet files are written as a whole."""
