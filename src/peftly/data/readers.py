"""Rows of files, of folders of the `datasets` library and of the Hub.

JSON Lines, JSON and CSV are parsed here rather than by a data-frame library: a parser that counts lines can report
`tweets.jsonl: line 7 is not valid JSON`, and no text is converted to a number or a missing value.
"""

import json
import re
import shlex
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftly.data.arrow import read_parquet, read_saved_dataset
from peftly.data.hub import HubSource, hub_source, read_hub
from peftly.data.report import counted
from peftly.data.rows import Rows, StoredRows, check_characters, describe, first_line, rows_of_objects
from peftly.data.tables import read_csv, read_tsv
from peftly.data.text_files import text_lines
from peftly.errors import DataError

__all__ = ["read"]


def read(source: str) -> dict[str, Rows]:
    """Read every split of a file, a folder or a data set on the Hub.

    Args:
        source: a `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet` file, a folder written by the `datasets`
            library's `save_to_disk`, or a data set on the Hub: its id, or `id@revision:configuration[split]` with any
            of these parts. No code of the Hub is run.

    Returns:
        Rows of each split, by the name of the split. A source without named splits is one split with the name "".

    Raises:
        DataError: the source does not exist, cannot be parsed, has no rows, or needs a package that is missing.
    """
    try:
        path = Path(source).expanduser()
        is_special = path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, an unknown user
        raise DataError(f"{source}: not the name of a file ({first_line(error)})") from None
    if is_special:
        raise DataError(f"{source}: a device or pipe; rows are read from files")
    if path.is_file():
        splits = {"": _read_file(source, path)}
    elif path.is_dir():
        _check_saved_dataset(source, path)
        splits = read_saved_dataset(source, path)
    elif (on_hub := _on_hub(source)) is not None:
        splits = {name: replace(rows, hub=(str(on_hub),)) for name, rows in read_hub(on_hub).items()}
    else:
        raise DataError(f"{source}: no such file or folder (looked from {Path.cwd()})")
    for rows in splits.values():
        if not rows.rows:
            raise DataError(f"{rows.name}: holds no rows; there is nothing to train on")
    return splits


def _check_saved_dataset(name: str, path: Path) -> None:
    """Refuse a folder of data files, and name them; a folder of `save_to_disk` has a file that describes it."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if files and not any((path / mark).is_file() for mark in ("dataset_dict.json", "dataset_info.json", "state.json")):
        first = next((file for file in files if "train" in file.name), files[0])
        raise DataError(
            f"{name}: not a folder written by datasets' save_to_disk, but with {counted(len(files), 'file')} of rows; "
            f"give the files, such as --data {shlex.quote(str(first))}"
        )


def _on_hub(source: str) -> HubSource | None:
    """Return the data set on the Hub that a source names; None for the name of a missing file."""
    found = hub_source(source)
    if found is None or Path(found.name).suffix.lower() in _READERS:
        return None
    # "tweets.txt", or "data/tweets" next to an existing data/, is a missing file instead of an id on the Hub.
    path = Path(found.name)
    can_be_id = not path.parent.is_dir() if "/" in found.name else not path.suffix
    return found if can_be_id else None


def _read_file(name: str, path: Path) -> Rows:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        problem = (
            f"files that end in {path.suffix!r} are not read" if path.suffix else "the name's ending says no format"
        )
        advice = next((advice for endings, advice in _ADVICE.items() if path.suffix.lower() in endings), "")
        raise DataError(f"{name}: {problem}{advice}; known are {' '.join(_READERS)}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty")
        return reader(name, path)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None


def _has_surrogate_escape(text: str) -> bool:
    """Return whether a JSON text escapes a surrogate, which can be half of a character."""
    return "\\ud" in text or "\\uD" in text


def _read_json_lines(name: str, path: Path) -> Rows:
    rows, lines = StoredRows(), array("q")
    for number, line in text_lines(name, path):
        if not rows and re.match(r"\s*\[\s*(\{|$)", line):
            return _read_json(name, path)  # files named .jsonl sometimes hold one list
        if row_and_text := _parse_line(name, number, line.strip()):
            rows.append(*row_and_text)
            lines.append(number)
    return Rows(name, rows, lines)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some names and values. Two values of one name are no JSON that programs read alike."""
    values = dict(pairs)
    if len(values) < len(pairs) and (twice := next((name for name, value in pairs if values[name] != value), None)):
        raise ValueError(f"an object has two values for {twice!r}")
    return values


def _parse_line(name: str, number: int, text: str) -> tuple[dict[str, Any], str] | None:
    """Return the row in a line of JSON Lines and the row's JSON text, or None for a blank line."""
    if not text:
        return None
    try:
        row = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :] == ",":
            raise DataError(f"{name}: line {number} ends with a comma; no comma belongs between the lines") from None
        if error.msg == "Extra data":
            raise DataError(
                f"{name}: line {number} holds a second value at column {error.colno}; start a new line for each row"
            ) from None
        reason = f"{error.msg}, column {error.colno}"
        raise DataError(f"{name}: line {number} is not valid JSON ({reason})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: line {number} is not valid JSON ({first_line(error)})") from None
    if not isinstance(row, dict):
        raise DataError(f"{name}: line {number} is {describe(row)}; every line must be an object with named fields")
    if _has_surrogate_escape(text):
        check_characters(f"{name}: line {number}", row)
    return row, text


def _read_json(name: str, path: Path) -> Rows:
    text = "".join(line for _, line in text_lines(name, path))
    if not text.strip():
        return Rows(name, [])
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos and text[: error.pos].lstrip().startswith("{"):
            return _read_json_lines(name, path)  # files named .json often hold one object per line
        if error.msg == "Extra data":
            raise DataError(
                f"{name}: line {error.lineno} begins a second list; give joined files one by one (--data a.json --data "
                "b.json)"
            ) from None
        raise DataError(f"{name}: line {error.lineno} is not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({first_line(error)})") from None
    if isinstance(content, dict):
        if not isinstance(content.get("data"), list):
            keys = ", ".join(map(repr, content)) or "no keys"
            raise DataError(f'{name}: an object with {keys}; expected a list of rows or {{"data": [rows]}}')
        content = content["data"]
    if not isinstance(content, list):
        raise DataError(f'{name}: holds {describe(content)}; expected a list of rows or {{"data": [rows]}}')
    return rows_of_objects(name, content, can_have_surrogates=_has_surrogate_escape(text))


_READERS: dict[str, Callable[[str, Path], Rows]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
_ADVICE = {
    (".xlsx", ".xls", ".ods"): " (save the sheet as .csv)",
    (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z"): " (unpack the file)",
}
