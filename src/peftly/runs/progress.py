"""Protection of the progress of a run that fails."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from peftly.errors import ConfigError, PeftlyError, TrainingError
from peftly.report import write_report
from peftly.runs.folder import adapter_folders
from peftly.runs.replacing import keep_or_restore, resume_command
from peftly.training import checkpoint_files, lost_process
from peftly.utils import is_main_process, stops_held

__all__ = ["keeping_progress"]


@contextmanager
def keeping_progress(out: Path, runs: Sequence[Path], *, resume: bool, root: Path | None = None) -> Iterator[None]:
    """Protect a run that may fail inside the block.

    Checkpoints and saved adapters stay, whatever the error is, and a run with a saved adapter gets its report. A run
    without either is deleted, unless it was resumed, and the earlier run that it was to replace is restored.

    Args:
        out: output folder.
        runs: run folders that the training writes: `out`, or folders inside it.
        resume: whether an unfinished run is continued.
        root: folder that is resumed; None: `out`.

    Raises:
        KeyboardInterrupt: as in the block, with the command that continues the run if there is a checkpoint.
        TrainingError: any other error, with the same command.
    """
    try:
        yield
    except BaseException as error:
        if not is_main_process():
            raise
        with stops_held():
            for folder in runs:
                if adapter_folders(folder):
                    _write_report_if_possible(folder)
            if not resume:
                with suppress(PeftlyError, OSError):  # the error that has ended the run is more important
                    keep_or_restore(out)
        advice = f"continue with: {resume_command(root or out)}"
        if not checkpoint_files(out) or isinstance(error, (SystemExit, TrainingError, ConfigError)):
            raise
        if isinstance(error, KeyboardInterrupt):
            raise type(error)("; ".join(filter(None, [str(error), advice]))) from error
        reported = lost_process(error) or error
        name = "" if isinstance(reported, (PeftlyError, OSError)) else f"{type(error).__name__}: "
        reason = str(reported).strip().split("\n")[0]
        raise TrainingError(f"{name}{reason}; {advice}") from error


def _write_report_if_possible(folder: Path) -> None:
    """Write the report of an unfinished run. The error that has ended the run is more important than one here."""
    with suppress(PeftlyError, OSError):
        write_report(folder)
