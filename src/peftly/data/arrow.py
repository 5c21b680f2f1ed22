"""Rows of Parquet files and of the `datasets` library, which both store Arrow tables.

The packages pyarrow and datasets are imported here only, at first use.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data.rows import Rows, StoredRows, check_characters, first_line
from peftly.data.storage import ByteStore, LazySequence
from peftly.errors import DataError, PeftlyError

if TYPE_CHECKING:
    import datasets

__all__ = ["import_datasets", "read_parquet", "read_saved_dataset", "rows_of_dataset", "rows_of_splits"]

_INSTALL = "pip install 'peftly[datasets]'"

_TABLE_ROWS = 256
"""Rows that are converted at once."""


class ArrowRows(LazySequence[dict[str, Any]]):
    """Rows of Arrow tables, which are converted on access. The rows of the last table stay for the next access.

    Attributes:
        fields: names of the fields.
    """

    def __init__(
        self,
        name: str,
        fields: list[str],
        count: int,
        ends: Sequence[int],
        table: Callable[[int], Any],
        class_names: Mapping[str, list[str]],
    ) -> None:
        """Prepare the rows.

        Args:
            name: name of the rows.
            fields: names of the fields.
            count: number of rows.
            ends: index of the row after each table.
            table: function that returns a table by its number.
            class_names: names of the classes, for fields that hold class numbers.
        """
        self._name, self.fields = name, fields
        self._count, self._ends, self._table, self._class_names = count, ends, table, class_names
        self._number, self._rows = -1, list[dict[str, Any]]()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def element(self, index: int) -> dict[str, Any]:
        """Return the row with this index."""
        number = bisect_right(self._ends, index)
        if number != self._number:
            self._rows = [_with_class_names(row, self._class_names) for row in _values(self._name, self._table(number))]
            self._number = number
        return self._rows[index - (self._ends[number - 1] if number else 0)]


def read_parquet(name: str, path: Path) -> Rows:
    """Read a Parquet file.

    Args:
        name: name of the rows.
        path: file to read.

    Raises:
        DataError: the file cannot be read, or the package pyarrow is missing.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.ipc  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{name}: Parquet files need the package pyarrow: {_INSTALL}") from None
    tables, ends = ByteStore(), array("q")
    try:
        parquet = pyarrow.parquet.ParquetFile(path)
        for batch in parquet.iter_batches(_TABLE_ROWS):
            _values(name, batch)  # raises the error of a value before anything is formatted
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            tables.append(sink.getvalue().to_pybytes())
            ends.append(len(batch) + (ends[-1] if ends else 0))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({first_line(error)})") from None
    count = ends[-1] if ends else 0
    class_names = _noted_class_names(parquet.schema_arrow)
    rows = ArrowRows(
        name,
        parquet.schema_arrow.names,
        count,
        ends,
        lambda number: pyarrow.ipc.open_stream(tables[number]).read_all(),
        class_names,
    )
    return Rows(name, rows, class_names=class_names)


def _values(name: str, table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table or batch as Python values.

    Raises:
        DataError: two columns have one name, or a value does not exist in Python, such as a date after the year 9999.
    """
    if len(set(table.schema.names)) < len(table.schema.names):
        raise DataError(f"{name}: two columns have the same name ({', '.join(table.schema.names)})")
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except Exception as error:  # noqa: BLE001 -- the errors of all types of values
        raise DataError(f"{name}: holds a value that cannot be read ({first_line(error)})") from None
    return rows


def _noted_class_names(schema: Any) -> dict[str, list[str]]:
    """Return the class names by field that the `datasets` library notes in a Parquet file; an odd note is ignored."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    single = {field: f[0] if isinstance(f, list) and len(f) == 1 else f for field, f in features}
    elements = {field: f.get("feature", f) for field, f in single.items() if isinstance(f, Mapping)}
    names = {field: f.get("names") for field, f in elements.items() if isinstance(f, Mapping)}
    return {field: n for field, n in names.items() if isinstance(n, list) and all(isinstance(c, str) for c in n)}


def read_saved_dataset(name: str, path: Path) -> dict[str, Rows]:
    """Read a folder that `datasets` wrote with `save_to_disk`.

    Args:
        name: name of the rows.
        path: folder to read.

    Returns:
        Rows of each split; a data set without splits is one split with the name "".

    Raises:
        DataError: the folder cannot be read, or the package datasets is missing.
    """
    library = import_datasets(f"{name}: folders of save_to_disk need")
    try:
        content = library.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises the errors of all its readers
        reason = first_line(error)
        raise DataError(f"{name}: not a folder written by datasets' save_to_disk ({reason})") from None
    return rows_of_splits(name, content)


def rows_of_dataset(name: str, content: "datasets.Dataset | datasets.IterableDataset") -> Rows:
    """Return the rows of a `datasets.Dataset`, with class names in place of class numbers.

    Args:
        name: name of the rows.
        content: data set, whose rows stay where they are; or a stream, which is read once and stored.
    """
    library = import_datasets(f"{name}: a Dataset needs")
    features = content.features or {}  # the features of a stream can be unknown
    elements = {field: getattr(feature, "feature", feature) for field, feature in features.items()}
    class_names = {
        field: feature.names for field, feature in elements.items() if isinstance(feature, library.ClassLabel)
    }
    if isinstance(content, library.IterableDataset):
        return Rows(name, _stored(name, content, class_names), class_names=class_names)
    arrow, ends = content.with_format("arrow"), range(_TABLE_ROWS, len(content) + _TABLE_ROWS, _TABLE_ROWS)
    rows = ArrowRows(
        name,
        content.column_names,
        len(content),
        ends,
        lambda number: arrow[ends[number] - _TABLE_ROWS : ends[number]],
        class_names,
    )
    return Rows(name, rows, class_names=class_names)


def _stored(name: str, stream: "datasets.IterableDataset", class_names: Mapping[str, list[str]]) -> StoredRows:
    rows = StoredRows()
    try:
        for row in stream:
            check_characters(f"{name}: row {len(rows) + 1}", row)
            rows.append(_with_class_names(row, class_names))
    except PeftlyError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises the errors of all its readers, and of the network
        raise DataError(f"{name}: the stream of rows ended after {len(rows):,} rows ({first_line(error)})") from None
    return rows


def import_datasets(need: str) -> Any:
    """Return the library `datasets`.

    Args:
        need: beginning of the message about a missing package.

    Raises:
        DataError: the package is missing.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{need} the package datasets: {_INSTALL}") from None
    return datasets


def rows_of_splits(name: str, content: "datasets.Dataset | datasets.DatasetDict") -> dict[str, Rows]:
    """Return the rows of each split; a data set without splits is one split with the name ""."""
    if isinstance(content, dict):
        return {str(split): rows_of_dataset(f"{name} [{split}]", part) for split, part in content.items()}
    return {"": rows_of_dataset(name, content)}


def _with_class_names(row: dict[str, Any], class_names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Replace class numbers by class names in place, and -1 ("no label") by None; return the row."""

    def named(value: object, names: list[str]) -> object:
        if isinstance(value, list):
            return [named(element, names) for element in value]
        if isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return value

    row.update({field: named(row[field], names) for field, names in class_names.items() if field in row})
    return row
