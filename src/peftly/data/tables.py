"""Rows of CSV and TSV files.

Quote signs: a comma-separated file is quoted, as RFC 4180 says. A tab-separated file is not (a quote sign is part of
the text), unless the whole file is written as spreadsheets and pandas write it; see `_has_quoted_cells`.
"""

import csv
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from peftly.data.rows import Rows, StoredRows
from peftly.data.text_files import BYTE_ORDER_MARK, decoding_error, encoding_of
from peftly.errors import DataError

__all__ = ["read_csv", "read_tsv"]

_QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')


class _Dialect(NamedTuple):
    """Rules by which a file is divided into cells.

    Attributes:
        separator: character between two cells.
        options: options of `csv.reader`.
        lines_before_header: number of lines to skip: 1 for Excel's line "sep=;".
        notes: assumptions, one sentence each.
    """

    separator: str
    options: dict[str, Any]
    lines_before_header: int
    notes: list[str]


def read_csv(name: str, path: Path) -> Rows:
    """Read a file with separated values. The separator is a comma, or a semicolon, tab or bar if the header has that.

    Args:
        name: name of the rows.
        path: file to read.

    Raises:
        DataError: the file is not UTF-8 or UTF-16 text, or its cells do not fit the header.
    """
    return _read(name, path, ",;\t|")


def read_tsv(name: str, path: Path) -> Rows:
    """Read a file with values separated by tabs, or as for `read_csv` if the header has no tab.

    Args:
        name: name of the rows.
        path: file to read.

    Raises:
        DataError: as for `read_csv`.
    """
    return _read(name, path, "\t,;|")


def _read(name: str, path: Path, separators: str) -> Rows:
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
    try:
        dialect = _dialect(name, path, separators)
        with _records(path, dialect) as records:
            return _rows(name, records, dialect)
    except UnicodeError as error:
        raise decoding_error(name, path, error) from None
    finally:
        csv.field_size_limit(limit)


@contextmanager
def _records(path: Path, dialect: _Dialect) -> Iterator[Any]:
    with path.open(encoding=encoding_of(path), newline="") as file:
        for _ in range(dialect.lines_before_header):
            file.readline()
        yield csv.reader(file, delimiter=dialect.separator, **dialect.options)


def _rows(name: str, records: Any, dialect: _Dialect) -> Rows:
    """Return the rows of the records of `csv.reader`, which counts lines."""
    rows, lines, notes = StoredRows(), array("q"), list(dialect.notes)
    repeated, joined = array("q"), list[str]()
    skipped = dialect.lines_before_header
    start = skipped + 1
    try:
        header: list[str] = next((record for record in records if record), [])
        fields = _fields(name, header, notes)
        start = records.line_num + 1 + skipped
        for record in records:
            if _has_cells(record, header) and not _is_header(f"{name}: line {start}", record, header, repeated, start):
                _check_width(f"{name}: line {start}", record, header, dialect.separator)
                rows.append({fields[column]: record[column] for column in fields})
                lines.append(start)
                if records.line_num + skipped > start and _looks_like_rows(record, dialect.separator):
                    joined.append(f"lines {start} to {records.line_num + skipped}")
            start = records.line_num + 1 + skipped
    except csv.Error as error:
        end = records.line_num + skipped
        row = f"line {end} is" if start >= end else f"the row in lines {start} to {end}, which a quote sign joins, is"
        raise DataError(f"{name}: {row} not valid CSV ({error})") from None
    if repeated:
        lines_and_verb = "1 line repeats" if len(repeated) == 1 else f"{len(repeated):,} lines repeat"
        notes.append(f"{name}: {lines_and_verb} the header, left out (first: line {repeated[0]})")
    if joined:
        notes.append(
            f"{name}: quote signs make one row of lines that each look like a row; is a quote sign misplaced? "
            f"{len(joined):,} of {len(rows):,} rows (first: {joined[0]})"
        )
    return Rows(name, rows, lines, notes=tuple(notes))


def _fields(name: str, header: list[str], notes: list[str]) -> dict[int, str]:
    """Return the names of the fields by their columns, and add a note on columns without a name."""
    names = [field.strip() for field in header]
    named = {column: field for column, field in enumerate(names) if field}
    if len(set(named.values())) < len(named):
        raise DataError(f"{name}: the header names a field twice ({', '.join(names)})")
    if len(named) < len(names):
        unnamed = ", ".join(str(column + 1) for column in range(len(names)) if column not in named)
        notes.append(f"{name}: not used, since the header has no name for it: column {unnamed}")
    return named


def _has_cells(record: list[str], header: list[str]) -> bool:
    """Return whether a record is a row instead of a line without characters besides blanks."""
    return len(record) > 1 or (len(record) == 1 and (len(header) == 1 or record[0].strip() != ""))


def _is_header(location: str, record: list[str], header: list[str], repeated: "array[int]", line: int) -> bool:
    """Return whether a record repeats the header, as in files that were joined by `cat`, and count the record."""
    if len(header) < 2 or record[0].lstrip(BYTE_ORDER_MARK).strip('"') not in header:
        return False
    cells = [record[0].lstrip(BYTE_ORDER_MARK).strip('"'), *record[1:]]
    if cells == header:
        repeated.append(line)
    elif sorted(cells) == sorted(header):
        raise DataError(f"{location} has the names of the header in another order ({', '.join(cells)}); write one file")
    return cells == header


def _looks_like_rows(record: list[str], separator: str) -> bool:
    """Return whether every line of a record has as many cells as the record: a stray quote sign can join rows."""
    return all(line.count(separator) == len(record) - 1 for line in separator.join(record).splitlines())


def _check_width(location: str, record: list[str], header: list[str], separator: str) -> None:
    if len(record) != len(header):
        fields = f"{', '.join(header)}; separated by {separator!r}" if separator in ";|" else ", ".join(header)
        raise DataError(f"{location} has {len(record)} fields where the header has {len(header)} ({fields})")


def _dialect(name: str, path: Path, separators: str) -> _Dialect:
    """Return the rules of a file: Excel's line "sep=;", otherwise the first separator that divides the header."""
    with path.open(encoding=encoding_of(path), newline="") as file:
        first = file.readline()
        named = re.fullmatch(r'"?sep=(.)"?\s*', first)
        if named and named[1] != '"':
            separator = named[1]
        else:
            separator = next((each for each in separators if _divides_header(path, each)), separators[0])
    skipped = int(named is not None)
    notes = [] if separator == separators[0] else [f"{name}: the separator is {separator!r}"]
    if separator != "\t":
        options = {"strict": True}
        if _has_blanks_before_quotes(path, separator, skipped):
            options["skipinitialspace"] = True
            notes.append(f"{name}: blanks behind a separator are left out, since quote signs follow some of them")
        return _Dialect(separator, options, skipped, notes)
    is_quoted, has_quotes = _tab_quotes(path, skipped)
    if has_quotes:
        use = "quote signs around a cell are left out" if is_quoted else "quote signs are part of the texts"
        notes.append(f"{name}: {use}")
    return _Dialect(separator, {"strict": True} if is_quoted else {"quoting": csv.QUOTE_NONE}, skipped, notes)


def _has_blanks_before_quotes(path: Path, separator: str, skipped: int) -> bool:
    """Return whether the cells of a file are quoted behind blanks, as in the line `fine, "good"`."""
    blanks = re.compile(rf'(^|{re.escape(separator)}) +"')
    with path.open(encoding=encoding_of(path), newline="") as file:
        if not any(map(blanks.search, file)):
            return False
    widths, are_quoted = set(), set()
    with _records(path, _Dialect(separator, {}, skipped, [])) as records:
        for record in filter(None, records):
            widths.add(len(record))
            behind_blanks = (cell.lstrip(" ") for cell in record if cell.startswith(" "))
            are_quoted |= {_QUOTED_CELL.fullmatch(cell) is not None for cell in behind_blanks if cell.startswith('"')}
    if not are_quoted or (len(widths) == 1 and are_quoted != {True}):
        return False  # the blanks and quote signs are inside of quoted cells
    with _records(path, _Dialect(separator, {"strict": True, "skipinitialspace": True}, skipped, [])) as records:
        return _has_one_width(records)


def _divides_header(path: Path, separator: str) -> bool:
    with _records(path, _Dialect(separator, {}, 0, [])) as records:
        return len(next((record for record in records if record), [])) > 1


def _tab_quotes(path: Path, skipped: int) -> tuple[bool, bool]:
    """Return whether the cells of a tab-separated file are quoted, and whether a cell starts with a quote sign."""
    with path.open(encoding=encoding_of(path), newline="") as file:
        for _ in range(skipped):
            file.readline()
        is_quoted, has_quotes = _has_quoted_cells(file)
    if is_quoted is None:
        with _records(path, _Dialect("\t", {"strict": True}, skipped, [])) as records:
            is_quoted = _has_one_width(records)
    return is_quoted, has_quotes


def _has_quoted_cells(lines: Iterable[str]) -> tuple[bool | None, bool]:
    """Return whether each cell with a quote sign is quoted as a spreadsheet quotes it; None: lines are not rows.

    A spreadsheet or pandas quotes all cells, the header included, or the cells that need it: those with a doubled
    quote sign inside, and in Excel's files those with a comma. A text between two quote signs alone needs none.

    Returns:
        Whether the cells are quoted, and whether any cell starts with a quote sign.
    """
    width, has_quotes, is_proper, fits = 0, False, True, True
    has_quoted_header = has_doubled = has_quoted_comma = has_bare_comma = False
    for line in lines:
        cells = line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        if not width:
            width, has_quoted_header = len(cells), all(map(_QUOTED_CELL.fullmatch, cells))
        fits = fits and len(cells) == width
        if '"' not in line:
            has_bare_comma = has_bare_comma or "," in line
            continue
        for cell in cells:
            if '"' not in cell:
                has_bare_comma = has_bare_comma or "," in cell
                continue
            has_quotes = has_quotes or cell.startswith('"')
            is_proper = is_proper and _QUOTED_CELL.fullmatch(cell) is not None
            has_doubled = has_doubled or '""' in cell[1:-1]
            has_quoted_comma = has_quoted_comma or "," in cell
    if not has_quotes or fits:
        shows = has_quoted_header or has_doubled or (has_quoted_comma and not has_bare_comma)
        return has_quotes and is_proper and shows, has_quotes
    return None, has_quotes


def _has_one_width(records: Any) -> bool:
    try:
        return len({len(record) for record in records if record}) == 1
    except csv.Error:
        return False
