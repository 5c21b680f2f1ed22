"""`data.json` in a run folder: the report on the data, the row format, and digests of the rows."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftly.data import Data, counted, pack_digests, unpack_digests
from peftly.errors import DataError
from peftly.runs.folder import run_of
from peftly.utils import write_json

__all__ = ["DATA_FILE", "DataFile", "changed_rows_line", "read_data_file", "write_data_file"]

DATA_FILE = "data.json"

_VERSION = 2
"""Version of the digests, which changes with `prompt_key` and `example_digest`."""


@dataclass(frozen=True)
class DataFile:
    """The parts of `data.json` by which the rows of a run are compared.

    Attributes:
        digests: digests of the rows of each split, as `Data` has them; empty for a run without digests.
        num_rows: number of rows of each split.
        problem: description of the damage, if the file is damaged.
    """

    digests: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None


def write_data_file(folder: Path, data: Data) -> None:
    """Write `data.json` in a run folder."""
    digests = {name: pack_digests(values) for name, values in data.digests.items()}
    write_json(
        folder / DATA_FILE,
        {
            **data.report.to_dict(),
            "lines": [*data.report.counts(), *data.report.notes],
            "row_format": data.row_format.to_dict(),
            "digests": {"version": _VERSION, **digests},
        },
    )


def read_data_file(folder: Path | None) -> DataFile:
    """Return digests and numbers of rows in `data.json` of a run folder; both empty if there is no such file."""
    file = None if folder is None else folder / DATA_FILE
    if file is None or not file.is_file():
        return DataFile()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        digests = content.get("digests", {})
        num_rows = {name: split["rows"] for name, split in content["splits"].items()}
        if digests.get("version") != _VERSION:
            return DataFile(num_rows=num_rows)
        packed = {name: text for name, text in digests.items() if name != "version"}
        return DataFile({name: unpack_digests(text) for name, text in packed.items()}, num_rows)
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        return DataFile(problem=f"{file} is damaged ({error})")


def changed_rows_line(run: str | Path, data: Data) -> str | None:
    """Return a line on training rows that were changed after a run; None if they are the same.

    Args:
        run: path that may be a run folder.
        data: data of the configuration of the run, as they are now.
    """
    stored = read_data_file(run_of(Path(run)))
    if "train" not in stored.digests or "train" not in data.digests:
        return None
    then, now = Counter(stored.digests["train"]), Counter(data.digests["train"])
    if then == now:
        return None
    removed = f"{(then - now).total():,} of the {counted(then.total(), 'training row')} of the run are gone"
    return f"the data were changed after the training: {removed}, and {counted((now - then).total(), 'row')} were added"
