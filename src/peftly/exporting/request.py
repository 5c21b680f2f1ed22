"""The request that `export` passes to the writer of a format."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Request"]


class Request(NamedTuple):
    """Input of a format's writer.

    Attributes:
        source: adapter (for some formats a base) to export, as `peftly.load` takes it.
        folder: empty temporary folder to write to.
        out: final path of this folder.
        dtype: one of the format's dtypes; None for a format without dtypes.
        base: base of the adapter, where it is not the one that the adapter names; None: that one.
    """

    source: str
    folder: Path
    out: Path
    dtype: str | None
    base: str | None = None
