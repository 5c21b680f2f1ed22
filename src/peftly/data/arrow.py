"""Rows of Parquet files and of the `datasets` library, which both store Arrow tables.

The packages pyarrow and datasets are imported here only, at first use.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data.rows import Rows, StoredRows, check_characters, first_line
from peftly.data.storage import LazySequence
from peftly.errors import DataError, PeftlyError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_hub", "read_parquet", "read_saved_dataset", "rows_of_dataset"]

_INSTALL = "pip install 'peftly[datasets]'"

_BLOCK_ROWS = 256
"""Rows that are converted at once."""


class ArrowRows(LazySequence[dict[str, Any]]):
    """Rows of an Arrow table, which are converted in blocks on access. The last block is stored for the next access."""

    def __init__(
        self, count: int, rows_between: Callable[[int, int], Any], class_names: Mapping[str, list[str]]
    ) -> None:
        """Prepare the rows.

        Args:
            count: number of rows.
            rows_between: function that returns the table of the rows from one index to before another.
            class_names: names of the classes, for fields that hold class numbers.
        """
        self._count, self._rows_between, self._class_names = count, rows_between, class_names
        self._number, self._block = -1, list[dict[str, Any]]()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def element(self, index: int) -> dict[str, Any]:
        """Return the row with this index."""
        number, offset = divmod(index, _BLOCK_ROWS)
        if number != self._number:
            start = number * _BLOCK_ROWS
            table = self._rows_between(start, min(start + _BLOCK_ROWS, self._count))
            self._block = [_with_class_names(row, self._class_names) for row in table.to_pylist()]
            self._number = number
        return self._block[offset]


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
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{name}: Parquet files need the package pyarrow: {_INSTALL}") from None
    try:
        table = _mapped_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({first_line(error)})") from None
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features", {})
    elements = {field: f.get("feature", f) for field, f in features.items() if isinstance(f, Mapping)}
    class_names = {field: f["names"] for field, f in elements.items() if isinstance(f, Mapping) and "names" in f}
    rows = ArrowRows(len(table), lambda start, end: table.slice(start, end - start), class_names)
    return Rows(name, rows)


def _mapped_table(path: Path) -> Any:
    """Return the table of a Parquet file, unpacked into a file without a name and mapped into memory."""
    import pyarrow.ipc  # type: ignore[import-untyped]
    import pyarrow.parquet

    from peftly.utils import cache_home

    parquet, folder = pyarrow.parquet.ParquetFile(path), cache_home()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        with pyarrow.ipc.new_file(file.name, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches():
                writer.write_batch(batch)
        return pyarrow.ipc.open_file(pyarrow.memory_map(file.name)).read_all()


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
    library = _import_datasets(f"{name}: folders of save_to_disk need")
    try:
        content = library.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises the errors of all its readers
        reason = first_line(error)
        raise DataError(f"{name}: not a folder written by datasets' save_to_disk ({reason})") from None
    return _rows_of_splits(name, content)


def read_hub(name: str) -> dict[str, Rows]:
    """Read a data set of the Hub. No code of the Hub is run.

    Args:
        name: id of the data set.

    Returns:
        Rows of each split; a data set without splits is one split with the name "".

    Raises:
        DataError: the Hub has no such data set or cannot be reached, or the package datasets is missing.
    """
    library = _import_datasets(f"{name}: no such file or folder, and data sets on the Hub need")
    try:
        content = library.load_dataset(name)
    except Exception as error:  # noqa: BLE001 - no network, no such repository, a configuration to choose, ...
        reason = first_line(error)
        raise DataError(
            f"{name}: no such file or folder, and the Hub gives no data set of that name ({reason})"
        ) from None
    return _rows_of_splits(name, content)


def rows_of_dataset(name: str, content: "datasets.Dataset | datasets.IterableDataset") -> Rows:
    """Return the rows of a `datasets.Dataset`, with class names in place of class numbers.

    Args:
        name: name of the rows.
        content: data set, whose rows stay where they are; or a stream, which is read once and stored.
    """
    library = _import_datasets(f"{name}: a Dataset needs")
    features = content.features or {}  # the features of a stream can be unknown
    elements = {field: getattr(feature, "feature", feature) for field, feature in features.items()}
    class_names = {
        field: feature.names for field, feature in elements.items() if isinstance(feature, library.ClassLabel)
    }
    if isinstance(content, library.IterableDataset):
        return Rows(name, _stored(name, content, class_names))
    table = content.with_format("arrow")
    return Rows(name, ArrowRows(len(table), lambda start, end: table[start:end], class_names))


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


def _import_datasets(need: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{need} the package datasets: {_INSTALL}") from None
    return datasets


def _rows_of_splits(name: str, content: "datasets.Dataset | datasets.DatasetDict") -> dict[str, Rows]:
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
