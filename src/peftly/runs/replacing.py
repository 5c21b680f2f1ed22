"""Check, begin, finish and clean the folder of a run."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from peftly.adapters import CONFIG
from peftly.errors import ConfigError
from peftly.runs.folder import (
    INTERRUPTED,
    RUN,
    adapter_files,
    adapter_folders,
    is_finished,
    is_run,
    part_folders,
    recover_run,
    run_files,
    runs_in,
)
from peftly.training import checkpoint_files
from peftly.utils import (
    MARK,
    check_output_folder,
    drop_earlier,
    earlier_files,
    folder_lock,
    has_earlier,
    is_main_process,
    make_folder,
    mark_text,
    program,
    replacing_files,
    restore_earlier,
    write_new_file,
)

__all__ = [
    "begin_run",
    "check_resumable",
    "check_run_folder",
    "clear_run",
    "finish_run",
    "keep_or_restore",
    "resume_command",
    "write_mark",
    "writing_into",
]

_MARKERS = ("config.yaml", CONFIG)
"""Files that make a folder a run or an adapter."""


def check_run_folder(out: Path, *, overwrite: bool = False, inputs: Iterable[str | None] = ()) -> None:
    """Refuse an output folder that a new run must not or cannot write. An interrupted replacement is completed first.

    Args:
        out: output folder. Files of other origin beside an earlier run are accepted: no run touches them.
        overwrite: whether an earlier run in the folder is replaced.
        inputs: paths and Hub ids of the data and the base of the new run.

    Raises:
        ConfigError: `out` is a file, is not writable, holds another run or one that is an input of the new run, or
            holds no run but other files.
    """
    recover_run(out)
    is_resumable = (out / "config.yaml").is_file() and not is_finished(out)
    hint = f", or continue it: {resume_command(out)}" if is_resumable else ""
    check_output_folder(out, kind=RUN, overwrite=overwrite, in_place=True, hint=hint)
    replaced = {file.resolve() for file in run_files(out)}
    for name in filter(None, inputs):
        path = Path(name).expanduser().resolve()
        holds_replaced = path.is_relative_to(out.resolve()) and any(file.is_relative_to(path) for file in replaced)
        if path in replaced or holds_replaced:
            raise ConfigError(f"out: the new run reads {name}, which is part of the run in {out} that it would replace")


def check_resumable(out: Path, *, is_part: bool = False) -> None:
    """Refuse a folder without an unfinished run. An interrupted replacement in the folder is completed first.

    Args:
        out: run folder.
        is_part: whether the run is continued together with the runs of other folders.

    Raises:
        ConfigError: `out` holds no run, a finished run, or one of several runs that are trained side by side.
    """
    recover_run(out)
    if not is_run(out):
        raise ConfigError(f"{out} holds no run to continue; name a run folder, which has a config.yaml and a {MARK}")
    if not (out / "config.yaml").is_file():
        raise ConfigError(f"the run in {out} has lost its config.yaml; put the file back, or train with --overwrite")
    if not is_part and out.resolve() in [part.resolve() for part in part_folders(out.resolve().parent)]:
        raise ConfigError(f"{out} is one of several runs that continue together: {resume_command(out.parent)}")
    if is_finished(out):
        raise ConfigError(f"the run in {out} is finished; for a longer run, train again with more epochs")


def resume_command(out: Path) -> str:
    """Return the shell command that continues the run in `out`."""
    return f"{program()} train --resume {shlex.quote(str(out))}"


@contextmanager
def writing_into(*folders: Path) -> Iterator[None]:
    """Hold the locks of output folders inside the block. The folders are created, and removed if they stay empty.

    Of several processes that train one run together, the main process holds the locks.

    Raises:
        ConfigError: another process writes into a folder; the message says which one and since when.
    """
    if not is_main_process():
        yield
        return
    created = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as locks:
            for folder in folders:
                make_folder(folder)
                locks.enter_context(folder_lock(folder))
                recover_run(folder)
            yield
    except OSError as error:
        if error.filename and any(Path(error.filename).parent == folder for folder in folders):
            raise ConfigError(f"out: {error.filename} cannot be written: {error.strerror}") from error
        raise
    finally:
        for path in sorted(created, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # a folder that is not empty stays
                path.rmdir()


def begin_run(out: Path, write_header: Callable[[Path], None]) -> None:
    """Write the first files of a run, all at once. The files of an earlier run are set aside in the same instant.

    Args:
        out: run folder.
        write_header: function that writes the first files of the run, and of its parts, into the folder it is given.
    """
    is_worth_keeping = any(adapter_folders(run) or checkpoint_files(run) for run in runs_in(out))
    if is_worth_keeping:
        drop_earlier(out)
    earlier = _names(out, run_files(out))
    with replacing_files(out, deletes=earlier, markers=_MARKERS, keep_earlier=is_worth_keeping) as scratch:
        write_header(scratch)


def finish_run(out: Path, parts: Sequence[Path] = ()) -> None:
    """Mark a run as finished, and delete in the same instant what only an unfinished run needs.

    Args:
        out: run folder. All results are on the disk.
        parts: folders of the runs inside it that were trained side by side.
    """
    recover_run(out)  # a full disk may have interrupted the replacement of an adapter of a step
    unneeded = [file for run in (out, *parts) for file in (*checkpoint_files(run), *adapter_files(run / INTERRUPTED))]
    with replacing_files(out, deletes=_names(out, [*unneeded, *earlier_files(out)])) as scratch:
        for run in (out, *parts):
            names = [part.name for part in parts] if run == out else []
            write_mark(scratch / run.relative_to(out), is_finished=True, parts=names)


def write_mark(folder: Path, *, is_finished: bool, parts: Sequence[str] = ()) -> None:
    """Write the mark of a run into a folder that has none.

    Args:
        folder: folder, which is created.
        is_finished: whether the run is finished.
        parts: names of the folders inside it of runs that are trained side by side.
    """
    make_folder(folder)
    write_new_file(folder / MARK, mark_text(RUN, finished=is_finished, parts=list(parts)).encode("utf-8"))


def keep_or_restore(out: Path) -> None:
    """Clean up after a run that has failed or was stopped.

    The run stays if it has an adapter or a checkpoint. Otherwise an earlier run that it was to replace is restored, and
    a run without a single step is deleted.
    """
    recover_run(out)
    runs = runs_in(out)
    if any(adapter_folders(run) for run in runs):
        drop_earlier(out)
    elif any(checkpoint_files(run) for run in runs):
        return
    elif has_earlier(out):
        restore_earlier(out, _names(out, run_files(out)), markers=_MARKERS)
    elif not any(_has_steps(run) for run in runs):
        clear_run(out)


def _has_steps(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def clear_run(out: Path) -> None:
    """Delete the files of a run, and the folder if it is empty then. Files of other origin are not touched."""
    recover_run(out)
    if files := run_files(out):
        with replacing_files(out, deletes=_names(out, files), markers=_MARKERS):
            pass
        if not any(out.iterdir()):
            out.rmdir()


def _names(out: Path, files: Iterable[Path]) -> list[str]:
    return [file.relative_to(out).as_posix() for file in files]
