"""Rows of the training, validation and test splits, from files, the Hub, or objects in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, cast

from peftly.data.hub import hub_source
from peftly.data.in_memory import RowsInMemory, rows_in_memory
from peftly.data.readers import read
from peftly.data.rows import Rows, describe, join_rows, quoted
from peftly.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["NONE", "DataSource", "is_list_of_paths", "read_rows", "read_splits", "source_name"]

NONE = "none"
"""Source of a split that is left out."""

DataSource: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str] | RowsInMemory | datasets.DatasetDict | datasets.IterableDatasetDict "
    "| Mapping[str, DataSource]"
)
"""Rows: a file, folder or Hub id, a list of these, rows in memory, a `DatasetDict`, or a mapping of split to these."""

_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
"""Names of each split in a data set, the preferred name first."""


def source_name(source: DataSource, split: str) -> str | tuple[str, ...]:
    """Return the name of a source for settings: its paths or Hub ids, or the name of the split for rows in memory.

    Args:
        source: source of the rows.
        split: split that the rows are used for.
    """
    if is_list_of_paths(source):
        return tuple(map(os.fspath, cast("Sequence[str]", source)))
    return os.fspath(source) if isinstance(source, str | os.PathLike) else split


def is_list_of_paths(source: object) -> bool:
    """Return whether a source is a tuple of names, as in a `DataConfig`, or a list of paths and Hub ids."""
    if not isinstance(source, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in source):
        return False
    if isinstance(source, tuple):
        return bool(source)
    # Hub ids have a user's name: a list of words is a list of rows that are no mappings, which has its own error.
    are_ids = all("/" in os.fspath(path) and hub_source(os.fspath(path)) for path in source)
    return any(map(os.path.exists, source)) or (bool(source) and are_ids)


def _described(source: DataSource, split: str) -> str:
    name = source_name(source, split)
    return name if isinstance(name, str) else " + ".join(name)


def read_splits(
    train: DataSource, validation: DataSource | None, test: DataSource | None
) -> tuple[dict[str, Rows], list[str]]:
    """Read the rows of each split. A file that is named twice is read once.

    Args:
        train: source of the training rows. Its other splits are used where `validation` or `test` is None.
        validation: source of the validation rows, None, or "none" for no such rows.
        test: source of the test rows, as for `validation`.

    Returns:
        Rows by the name of the split ("train", "validation", "test"), and notes: assumptions of the readers, and each
        split of the data set `train` that is used or left out.

    Raises:
        DataError: a source has the wrong kind, cannot be read, has no rows, or has no split of the wanted name.
    """
    read_once = cache(read)
    train_splits = _read_source(train, "train", read_once)
    rows, notes = {"train": _select(train_splits, "train", _described(train, "train"))}, []
    for split, source in (("validation", validation), ("test", test)):
        own = next((name for name in _SPLIT_NAMES[split] if name in train_splits), None)
        has_own = own is not None and train_splits[own] is not rows["train"]
        if isinstance(source, str) and source == NONE:
            notes.append(f"no {split} rows, as asked" + (f": the split {own!r} is left out" if has_own else ""))
        elif source is not None:
            rows[split] = _select(_read_source(source, split, read_once), split, _described(source, split))
        elif has_own and own is not None:
            rows[split] = train_splits[own]
            owner = f" of {_described(train, '')}" if _described(train, "") else ""
            notes.append(f"{split} is the split {own!r}{owner}")
    return rows, [*dict.fromkeys(note for part in rows.values() for note in part.notes), *notes]


def read_rows(source: DataSource, split: str = "test") -> Rows:
    """Return the rows of one split of a source.

    Args:
        source: source of the rows.
        split: split that is used if the source has several.

    Raises:
        DataError: as for `read_splits`.
    """
    return _select(_read_source(source, split, read), split, _described(source, split))


def _read_source(source: DataSource, split: str, read_file: Callable[[str], dict[str, Rows]]) -> dict[str, Rows]:
    """Return the rows of a source by the name of the split in the source."""
    if isinstance(source, str | os.PathLike):
        return read_file(os.fspath(source))
    if is_list_of_paths(source):
        return _read_several([os.fspath(path) for path in cast("Sequence[str]", source)], split, read_file)
    library = sys.modules.get("datasets")  # whoever has a DatasetDict has imported the library
    if library is not None and isinstance(source, library.DatasetDict | library.IterableDatasetDict):
        source = {str(name): part for name, part in source.items()}
        parts = {name: rows_in_memory(_name_in(split, name), part) for name, part in source.items()}
        return {name: _checked(part) for name, part in parts.items() if part is not None}
    if isinstance(source, Mapping):
        return _read_mapping(cast("Mapping[str, DataSource]", source), split, read_file)
    if (rows := rows_in_memory(split, source)) is not None:
        return {"": _checked(rows)}
    raise DataError(
        f"the source of the {split} rows is {describe(source)}; expected a file, a folder or a Hub id, a list "
        "of rows (dicts), a datasets.Dataset or DatasetDict, a pandas.DataFrame, or a mapping of split names to these"
    )


def _read_several(paths: list[str], split: str, read_file: Callable[[str], dict[str, Rows]]) -> dict[str, Rows]:
    """Return the joined rows of several sources, and of the other splits that any of them has."""
    parts = {path: read_file(path) for path in paths}
    known = [name for names in _SPLIT_NAMES.values() for name in names if any(name in part for part in parts.values())]
    joined = {name: join_rows([part[name] for part in parts.values() if name in part]) for name in known}
    own = split if split in _SPLIT_NAMES else "train"
    return {**joined, own: join_rows([_select(part, own, path) for path, part in parts.items()])}


def _read_mapping(
    source: Mapping[str, DataSource], split: str, read_file: Callable[[str], dict[str, Rows]]
) -> dict[str, Rows]:
    split_of_name = {name: known for known, names in _SPLIT_NAMES.items() for name in names}
    unknown = [name for name in source if name not in split_of_name]
    if unknown or not source:
        raise DataError(
            f"the source of the {split} rows is a mapping with {quoted(source)}; expected the names of splits: "
            f"{quoted(split_of_name)}"
        )
    if split == "train" and "train" not in source:
        raise DataError(f"the source of the train rows is a mapping with {quoted(source)}, and 'train' is missing")
    rows = {}
    for name, part in source.items():
        part_name = _name_in(split, name)
        rows[name] = _select(_read_source(part, part_name, read_file), split_of_name[name], _described(part, part_name))
    return rows


def _name_in(split: str, name: str) -> str:
    """Return the name of a part of a source in memory; the parts of the training source need no other name."""
    return name if split == "train" else f"{split} [{name}]"


def _select(splits: Mapping[str, Rows], split: str, source: str) -> Rows:
    """Return the rows of the wanted split, or of the only split."""
    for name in _SPLIT_NAMES[split]:
        if name in splits:
            return splits[name]
    if len(splits) > 1:
        raise DataError(f"{source}: has the splits {quoted(splits)}, none of them {split!r}")
    return next(iter(splits.values()))


def _checked(rows: Rows) -> Rows:
    if not rows.rows:
        raise DataError(f"{rows.name}: holds no rows; there is nothing to train on")
    return rows
