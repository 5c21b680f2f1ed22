"""Check, replace and clean the folder of a run."""

import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peftly.errors import ConfigError
from peftly.runs.folder import (
    INTERRUPTED,
    adapter_files,
    adapter_folders,
    has_name_of_run,
    is_finished,
    is_run,
    part_folders,
    run_files,
)
from peftly.training import CHECKPOINT
from peftly.utils import check_output_folder, program

__all__ = [
    "check_resumable",
    "check_run_folder",
    "clear_run",
    "drop_leftovers",
    "replacing",
    "resume_command",
]


def check_run_folder(out: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that a new run must not or cannot write. Nothing on disk is changed.

    Args:
        out: output folder. Files of other origin beside an earlier run are accepted: no run touches them.
        overwrite: whether an earlier run in the folder is replaced.

    Raises:
        ConfigError: `out` is a file, is not writable, holds another run, or holds no run but other files.
    """
    hint = "" if is_finished(out) else f", or continue it: {resume_command(out)}"
    check_output_folder(out, kind="a run", is_ours=is_run, overwrite=overwrite, in_place=True, hint=hint)


def check_resumable(out: Path) -> None:
    """Refuse a folder without an unfinished run. Nothing on disk is changed.

    Raises:
        ConfigError: `out` holds no run, a finished run, or one of several runs that are trained side by side.
    """
    foreign = [entry for entry in out.iterdir() if not has_name_of_run(out, entry)] if out.is_dir() else []
    has_started = any((run / "data.json").is_file() for run in (out, *part_folders(out)))
    if not (out / "config.yaml").is_file() or (foreign and not has_started):
        raise ConfigError(f"{out} holds no run to continue; name a run folder, which has a config.yaml")
    if out.resolve() in [part.resolve() for part in part_folders(out.resolve().parent)]:
        raise ConfigError(f"{out} is one of several runs that continue together: {resume_command(out.parent)}")
    if is_finished(out):
        raise ConfigError(f"the run in {out} is finished; for a longer run, train again with more epochs")


def resume_command(out: Path) -> str:
    """Return the shell command that continues the run in `out`."""
    return f"{program()} train --resume {shlex.quote(str(out))}"


def clear_run(out: Path) -> None:
    """Delete the files of a run, and the folder if it is empty then. Files of other origin are not touched."""
    for file in run_files(out):
        file.unlink()
        _remove_empty(file.parent, out)


def drop_leftovers(out: Path) -> None:
    """Delete the checkpoint and the interrupted adapter of a finished run, and scratch folders of killed processes."""
    (out / CHECKPOINT).unlink(missing_ok=True)
    for pattern in (f".{CHECKPOINT}-*", ".adapter-*", ".step-*", ".replaced-*"):
        for scratch in out.glob(pattern):
            shutil.rmtree(scratch, ignore_errors=True)
    for file in adapter_files(out / INTERRUPTED):
        file.unlink()
        _remove_empty(file.parent, out)


@contextmanager
def replacing(out: Path) -> Iterator[None]:
    """Set the run in `out` aside for the new run inside the block.

    If the new run has saved no adapter at the end of the block, its files are deleted and the earlier run is restored.
    Until then the earlier run is in a hidden folder in `out`, which remains if the process is killed.
    """
    files = run_files(out)
    backup = Path(tempfile.mkdtemp(prefix=".replaced-", dir=out)) if files else None
    if backup is not None:
        _move(files, out, backup)
    try:
        yield
    finally:
        if not any(adapter_folders(run) for run in (out, *part_folders(out))):
            clear_run(out)
            if backup is not None:
                _move([file for file in backup.rglob("*") if file.is_file()], backup, out)
        if backup is not None:
            shutil.rmtree(backup, ignore_errors=True)


def _move(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        file.replace(destination)
        _remove_empty(file.parent, source)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and its parents up to and including `top`, as long as they are empty."""
    while folder.is_relative_to(top) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
