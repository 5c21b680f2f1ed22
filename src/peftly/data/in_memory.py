"""Rows of objects in memory: a list, an iterator, a data frame of pandas, or a data set of the `datasets` library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from peftly.data.arrow import rows_of_dataset
from peftly.data.rows import Rows, describe, quoted, rows_of_objects
from peftly.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd  # type: ignore[import-untyped]

__all__ = ["RowsInMemory", "rows_in_memory"]

RowsInMemory: TypeAlias = (
    "Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]] | pd.DataFrame | datasets.Dataset "
    "| datasets.IterableDataset"
)
"""Rows of one split: a list or an iterator of mappings, a frame of pandas, a `Dataset`, or an `IterableDataset`."""


def rows_in_memory(name: str, source: object) -> Rows | None:
    """Return the rows of an object in memory; None if it is of another kind.

    Args:
        name: name of the rows.
        source: the object. An iterator and an `IterableDataset` are read to their ends.

    Raises:
        DataError: a row is no mapping with named fields, or a frame has two columns of one name.
    """
    # Whoever has a Dataset or a DataFrame has imported its library.
    library, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    if library is not None and isinstance(source, library.Dataset | library.IterableDataset):
        return rows_of_dataset(name, source)
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _rows_of_frame(name, source, pandas)
    if isinstance(source, Iterator):
        source = list(source)
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
        return rows_of_objects(name, [_plain_row(row) if isinstance(row, Mapping) else row for row in source])
    return None


def _rows_of_frame(name: str, frame: Any, pandas: Any) -> Rows:
    """Return the rows of a data frame: missing values (NaN, NaT, NA) as null, and categories in their order."""
    columns = list(frame.columns)
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise DataError(
            f"{name}: the columns of the frame are {quoted(map(str, columns))}; each needs a name of its own "
            f"(frame.columns = [...]), not {describe(next((c for c in columns if not isinstance(c, str)), ''))}"
        )
    plain = frame.astype(object).where(frame.notna(), None)
    categories = {column: frame[column].dtype for column in columns}
    class_names = {
        column: list(kind.categories)
        for column, kind in categories.items()
        if isinstance(kind, pandas.CategoricalDtype) and all(isinstance(value, str) for value in kind.categories)
    }
    rows = rows_of_objects(name, [_plain_row(row) for row in plain.to_dict("records")])
    return Rows(name, rows.rows, class_names=class_names)


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the values of numpy as those of Python, and the NA of pandas as None."""
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    if type(value).__name__ == "NAType":
        return None
    return value.tolist() if type(value).__module__ == "numpy" else value
