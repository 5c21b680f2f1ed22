"""Several runs: side by side on one base, or on one base after the other.

Runs on several bases have a folder for each base inside the output folder, as if its jobs had been trained alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data import DataConfig, read_data
from peftly.errors import ConfigError, PeftlyError, TrainingError
from peftly.models import Base, resolve_base
from peftly.report import write_comparison
from peftly.runs.config import AnyConfig, JobsConfig
from peftly.runs.config_file import dump_config
from peftly.runs.folder import RESULTS, is_finished, is_run
from peftly.runs.replacing import (
    begin_run,
    check_resumable,
    check_run_folder,
    finish_run,
    keep_or_restore,
    resume_command,
    write_mark,
    writing_into,
)
from peftly.runs.results import RunResult
from peftly.runs.run import inputs_of
from peftly.runs.side_by_side import TogetherResult, run_side_by_side
from peftly.training import check_trackers
from peftly.utils import environment, stops_held, stops_raised, write_json, write_text

if TYPE_CHECKING:
    from peftly.training import Callback

__all__ = ["run_together"]


def run_together(
    config: AnyConfig,
    *,
    base: Base | None = None,
    overwrite: bool = False,
    resume: bool = False,
    log: Callable[[str], None] = lambda _: None,
    callbacks: Mapping[str, Sequence["Callback"]] | None = None,
) -> TogetherResult:
    """Train several runs in shared batches on one base. Write a run folder for each, and a comparison.

    Jobs with several bases are trained on one base after the other.

    Args:
        config: configuration of an ensemble, or of jobs.
        base: base named in `config`, if it is already open. It has the trained adapters afterwards.
        overwrite: replace earlier runs in the output folder.
        resume: continue the unfinished runs in the output folder, which have this configuration.
        log: function that receives each line of progress.
        callbacks: callbacks of the training by the name of the run, as `train_together` takes them.

    Returns:
        Results of all runs, and scores of the ensemble. After a resume, `runs` has no runs on bases that were finished.

    Raises:
        ConfigError: the configuration describes one run, the runs do not fit on one base, or a folder cannot be used.
        DataError, BaseModelError, MethodError, TrainingError: as for `run`.
    """
    groups = config.groups() if isinstance(config, JobsConfig) else {}
    if not isinstance(config, JobsConfig) or not groups:
        return run_side_by_side(config, base=base, overwrite=overwrite, resume=resume, log=log, callbacks=callbacks)
    if base is not None:
        raise ConfigError(f"a base is given, and the jobs have several: {config.base}")
    out = Path(config.out)
    with stops_raised(), writing_into(out):
        _check_groups([group for group in groups.values() if not (resume and is_finished(Path(group.out)))])
        if resume:
            check_resumable(out)
        else:
            inputs = [name for job in config.jobs.values() for name in inputs_of(job)]
            check_run_folder(out, overwrite=overwrite, inputs=inputs)
            begin_run(out, partial(_write_header, config=config))
        runs: dict[str, RunResult] = {}
        try:
            for name, group in groups.items():
                folder = Path(group.out)
                if is_finished(folder):
                    log(f"{name}: finished before")
                    continue
                log(f"{name}:")
                own = {job: callbacks[job] for job in group.jobs if job in callbacks} if callbacks else None
                trained = run_side_by_side(group, resume=is_run(folder), log=log, callbacks=own, root=out)
                runs |= trained.runs
        except BaseException as error:
            _leave(out, groups, error)
            raise
        results = _comparison(config, groups)
        write_json(out / RESULTS, results)
        report = write_comparison(out, RESULTS)
        finish_run(out)
    return TogetherResult(out, runs, None, results["rows"], report)


def _check_groups(groups: Sequence[JobsConfig]) -> None:
    """Report a missing base, tracker or file of data before the first base is trained.

    Raises:
        BaseModelError, ConfigError, DataError: something is missing, or the data cannot be read.
    """
    read: list[DataConfig] = []
    for group in groups:
        _ = resolve_base(group.base).config
        trackers = [name for job in group.jobs.values() for name in job.train.report_to]
        check_trackers(trackers, together=True)
        for job in group.jobs.values():
            if job.data not in read:
                read_data(job.data)
                read.append(job.data)


def _write_header(folder: Path, config: JobsConfig) -> None:
    write_mark(folder, is_finished=False, parts=tuple(config.groups()))
    write_text(folder / "config.yaml", dump_config(config))


def _leave(out: Path, groups: Mapping[str, JobsConfig], error: BaseException) -> None:
    """Keep runs that a resume continues, and delete others, after an error or a stop.

    Raises:
        KeyboardInterrupt, TrainingError: the same error, with the command that continues the runs.
    """
    if not any(is_run(Path(group.out)) for group in groups.values()):
        with stops_held():
            keep_or_restore(out)
        return
    advice = f"continue with: {resume_command(out)}"
    if advice in str(error) or not isinstance(error, (KeyboardInterrupt, PeftlyError, OSError)):
        return
    kind = type(error) if isinstance(error, KeyboardInterrupt) else TrainingError
    raise kind("; ".join(filter(None, [str(error), advice]))) from error


def _comparison(config: JobsConfig, groups: Mapping[str, JobsConfig]) -> dict[str, Any]:
    """Return the content of the comparison page as JSON values, from the results of each base."""
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for folder, group in groups.items():
        results = json.loads((Path(group.out) / RESULTS).read_text(encoding="utf-8"))
        for row in results["rows"]:
            is_run_of_base = row["folder"] is not None
            name = row["name"] if is_run_of_base else f"{folder}: {row['name']}"
            link = f"{folder}/{row['folder']}" if is_run_of_base else None
            rows.append({**row, "name": name, "base": folder, "folder": link})
        lines += [f"{folder}: {line}" for line in results["data"]]
    return {
        "title": Path(config.out).resolve().name,
        "subtitle": f"{', '.join(config.jobs)} on {config.base}, one base after the other",
        "rows": rows,
        "data": lines,
        "environment": environment(),
    }
