"""Rows of Parquet files and of the `datasets` library, which both store Arrow tables.

The packages pyarrow and datasets are imported here only, at first use.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data.rows import Rows, first_line
from peftly.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_hub", "read_parquet", "read_saved_dataset", "rows_of_dataset"]

_INSTALL = "pip install 'peftly[datasets]'"


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
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({first_line(error)})") from None
    return Rows(name, _with_class_names(_values(name, table), _noted_class_names(table.schema)))


def _values(name: str, table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table as Python values.

    Raises:
        DataError: two columns have one name, or a value does not exist in Python, such as a date after the year 9999.
    """
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{name}: two columns have the same name ({', '.join(table.column_names)})")
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
    elements = {field: f.get("feature", f) for field, f in features if isinstance(f, Mapping)}
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


def rows_of_dataset(name: str, content: "datasets.Dataset") -> Rows:
    """Return the rows of a `datasets.Dataset`, with class names in place of class numbers.

    Args:
        name: name of the rows.
        content: data set in memory.
    """
    library = _import_datasets(f"{name}: a Dataset needs")
    elements = {field: getattr(feature, "feature", feature) for field, feature in content.features.items()}
    class_names = {
        field: feature.names for field, feature in elements.items() if isinstance(feature, library.ClassLabel)
    }
    return Rows(name, _with_class_names(_values(name, content.with_format("arrow")[:]), class_names))


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


def _with_class_names(rows: list[dict[str, Any]], class_names: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Replace class numbers by class names in place, and -1 ("no label") by None; return the rows."""

    def named(value: object, names: list[str]) -> object:
        if isinstance(value, list):
            return [named(element, names) for element in value]
        if isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return value

    for row in rows:
        row.update({field: named(row[field], names) for field, names in class_names.items() if field in row})
    return rows
