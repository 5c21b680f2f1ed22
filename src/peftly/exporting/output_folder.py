"""The check of the output folder of an export."""

from pathlib import Path

from peftly.errors import ConfigError
from peftly.utils import check_output_folder

__all__ = ["KIND", "check_out"]

KIND = "an export"
"""Kind of the output folder, in its mark."""


def check_out(out: Path, adapter: str, *, overwrite: bool) -> None:
    """Check that an export may be written to a folder. Nothing is changed.

    Args:
        out: absolute path of the output folder.
        adapter: adapter or base to export.
        overwrite: whether the files of an earlier export may be replaced.

    Raises:
        ConfigError: `out` is a file, holds the adapter to export, or holds files that may not be replaced.
    """
    source = Path(adapter).expanduser().resolve()
    if source.exists() and (source.is_relative_to(out) or out == source / "adapter"):
        raise ConfigError(f"out: {out} is or holds the adapter to export; choose another folder")
    check_output_folder(out, kind=KIND, overwrite=overwrite)
