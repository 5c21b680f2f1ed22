"""Rows out of files, `datasets` folders and the Hub, each with the place it came from.

JSON Lines, JSON and CSV are parsed here rather than by a data-frame library: a parser that knows its line can say
`tweets.jsonl: line 7 is not valid JSON`, and nothing is turned into a number or a missing value on the way.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["Rows", "describe", "read"]


@dataclass(frozen=True)
class Rows:
    """The rows of one file or split.

    Attributes:
        name: the file or data set, as the person wrote it.
        rows: one mapping of field to value a row.
        lines: the line each row starts on, for formats that have lines.
    """

    name: str
    rows: list[dict[str, Any]]
    lines: list[int] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def where(self, index: int) -> str:
        """Return the place of a row (counted from 0) in words that a person can look up."""
        return f"{self.name}: " + (f"line {self.lines[index]}" if self.lines else f"row {index + 1}")

    @property
    def fields(self) -> list[str]:
        """Every field that any row has, in order of appearance."""
        return list(dict.fromkeys(field for row in self.rows for field in row))


def read(source: str) -> dict[str, Rows]:
    """Read every split of a file, a `datasets` folder or a Hub data set.

    Args:
        source: a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, a folder written by `save_to_disk`, or the id
            of a data set on the Hub. No code from the Hub is run.

    Returns:
        Split name to rows. What has no named splits is one split named "".

    Raises:
        DataError: nothing is there, it cannot be parsed, or it holds no rows.
    """
    path = Path(source).expanduser()
    if path.is_file():
        splits = {"": _read_file(source, path)}
    elif path.is_dir():
        splits = _read_folder(source, path)
    elif _reads_as_hub_id(source, path):
        splits = _read_hub(source)
    else:
        raise DataError(f"{source}: no such file or folder (looked from {Path.cwd()})")
    for rows in splits.values():
        if not rows.rows:
            raise DataError(f"{rows.name}: holds no rows; there is nothing to train on")
    return splits


def describe(value: object) -> str:
    """Return what kind of value a JSON reader would call this, for messages."""
    if value is None:
        return "null"
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _reads_as_hub_id(source: str, path: Path) -> bool:
    if path.suffix.lower() in _READERS or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        return False
    # "tweets.txt" or "data/tweets" beside an existing data/ is a file that is not there, not a name on the Hub.
    return not path.parent.is_dir() if "/" in source else not path.suffix


def _read_file(name: str, path: Path) -> Rows:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        ending = (
            f"files that end in {path.suffix!r} are not read" if path.suffix else "the name's ending says no format"
        )
        raise DataError(f"{name}: {ending}; known are {' '.join(_READERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty")
    return reader(name, path)


def _decode(name: str, line: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: line {line} is not UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _read_json_lines(name: str, path: Path) -> Rows:
    rows, lines = [], []
    # Only "\n" ends a line: str.splitlines would also cut at the U+2028 that JSON texts may hold.
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        text = _decode(name, number, raw).strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f"{error.msg}, column {error.colno}"
            raise DataError(f"{name}: line {number} is not valid JSON ({reason})") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: line {number} is not valid JSON ({_first_line(error)})") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}: line {number} is {describe(row)}; every line must be an object with named fields")
        _check_characters(f"{name}: line {number}", text, row)
        rows.append(row)
        lines.append(number)
    return Rows(name, rows, lines)


def _read_json(name: str, path: Path) -> Rows:
    text = "\n".join(_decode(name, number, raw) for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1))
    if not text.strip():
        return Rows(name, [])
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos and text[: error.pos].lstrip().startswith("{"):
            return _read_json_lines(name, path)  # many a file named .json holds one object a line
        raise DataError(f"{name}: line {error.lineno} is not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({_first_line(error)})") from None
    if isinstance(content, dict):
        if not isinstance(content.get("data"), list):
            keys = ", ".join(map(repr, content)) or "no keys"
            raise DataError(f'{name}: an object with {keys}; expected a list of rows or {{"data": [rows]}}')
        content = content["data"]
    if not isinstance(content, list):
        raise DataError(f'{name}: holds {describe(content)}; expected a list of rows or {{"data": [rows]}}')
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{name}: row {number} is {describe(row)}; every row must be an object with named fields")
        _check_characters(f"{name}: row {number}", text, row)
    return Rows(name, content)


def _check_characters(place: str, source: str, row: dict[str, Any]) -> None:
    """Raise DataError for half of an emoji, which JSON can spell as an escape but no tokenizer takes."""
    if "\\ud" not in source and "\\uD" not in source:
        return
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise DataError(f"{place} holds half of a character ({half}); write both halves or neither") from None


def _read_table_text(delimiter: str) -> Callable[[str, Path], Rows]:
    def reader(name: str, path: Path) -> Rows:
        rows, lines = [], []
        limit = csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                records = csv.reader(file, delimiter=delimiter, strict=True)
                header = next((record for record in records if record), [])
                if len(set(header)) < len(header):
                    raise DataError(f"{name}: the header names a field twice ({', '.join(header)})")
                start = records.line_num + 1
                for record in records:
                    if record:
                        _check_width(f"{name}: line {start}", record, header)
                        rows.append(dict(zip(header, record, strict=True)))
                        lines.append(start)
                    start = records.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}: line {records.line_num} is not valid CSV ({error})") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
        finally:
            csv.field_size_limit(limit)
        return Rows(name, rows, lines)

    return reader


def _check_width(place: str, record: list[str], header: list[str]) -> None:
    if len(record) != len(header):
        raise DataError(f"{place} has {len(record)} fields where the header has {len(header)} ({', '.join(header)})")


def _read_parquet(name: str, path: Path) -> Rows:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({_first_line(error)})") from None
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features", {})
    classes = {field: f.get("feature", f) for field, f in features.items() if isinstance(f, Mapping)}
    names = {field: f["names"] for field, f in classes.items() if isinstance(f, Mapping) and "names" in f}
    return Rows(name, _with_class_names(table.to_pylist(), names))


_READERS: dict[str, Callable[[str, Path], Rows]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table_text(","),
    ".tsv": _read_table_text("\t"),
    ".parquet": _read_parquet,
}


def _read_folder(name: str, path: Path) -> dict[str, Rows]:
    import datasets

    try:
        content = datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises whatever its readers raise
        reason = _first_line(error)
        raise DataError(f"{name}: not a folder written by datasets' save_to_disk ({reason})") from None
    return _splits(name, content)


def _read_hub(name: str) -> dict[str, Rows]:
    import datasets

    try:
        content = datasets.load_dataset(name)
    except Exception as error:  # noqa: BLE001 - no network, no such repository, a configuration to choose, ...
        reason = _first_line(error)
        raise DataError(
            f"{name}: no such file or folder, and the Hub gives no data set of that name ({reason})"
        ) from None
    return _splits(name, content)


def _splits(name: str, content: "datasets.Dataset | datasets.DatasetDict") -> dict[str, Rows]:
    if isinstance(content, dict):
        return {str(split): _from_dataset(f"{name} [{split}]", part) for split, part in content.items()}
    return {"": _from_dataset(name, content)}


def _from_dataset(name: str, content: "datasets.Dataset") -> Rows:
    import datasets

    classes = {field: getattr(feature, "feature", feature) for field, feature in content.features.items()}
    names = {field: feature.names for field, feature in classes.items() if isinstance(feature, datasets.ClassLabel)}
    return Rows(name, _with_class_names(content.to_list(), names))


def _with_class_names(rows: list[dict[str, Any]], names: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return the rows with class numbers replaced by the classes' names; -1, "no label", becomes None."""

    def named(number: object, classes: list[str]) -> object:
        if isinstance(number, list):
            return [named(one, classes) for one in number]
        if isinstance(number, int):
            return classes[number] if 0 <= number < len(classes) else None
        return number

    for row in rows:
        row.update({field: named(row[field], classes) for field, classes in names.items() if field in row})
    return rows


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
