"""Kinds of trackers of experiments: those of Accelerate, MLflow, and CSV files.

Trackers of services work offline unless an environment variable of their own says otherwise, and collect neither the
console nor facts about the machine. A run folder has the files of its trackers in `trackers`, without any key.
"""

import csv
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.tracking import GeneralTracker, SwanLabTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from peftly.errors import ConfigError

__all__ = ["KINDS", "TrackedRun", "check_trackers"]

_PROJECT = "peftly"


class TrackedRun(NamedTuple):
    """A run, for its trackers.

    Attributes:
        folder: folder of the trackers' files.
        name: name of the run.
        ids: ids of the run by the name of the tracker.
        step: number of updates before the first one that is logged.
        is_continued: whether the trackers have a part of this run.
        settings: settings of the run, without nesting.
    """

    folder: Path
    name: str
    ids: dict[str, str]
    step: int
    is_continued: bool
    settings: dict[str, Any]


class CsvTracker(GeneralTracker):  # type: ignore[misc]
    """Tables of the logged values: a file for each prefix (`train`, `eval`, `final`), a row for each step."""

    name = "csv"
    requires_logging_directory = True

    def __init__(self, folder: Path, step: int) -> None:
        """Prepare the files, whose rows behind `step` are removed."""
        self.tracker = folder
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.csv"):
            columns, rows = self._read(file)
            self._write(file, columns, [row for row in rows if int(row["step"]) <= step])

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Append a row to the file of each prefix; a new column is empty in the rows before."""
        for prefix in dict.fromkeys(name.partition("/")[0] for name in values):
            file, own = self.tracker / f"{prefix}.csv", dict[str, float | None](step=step)
            own |= {name.partition("/")[2]: value for name, value in values.items() if name.startswith(f"{prefix}/")}
            columns, rows = self._read(file, only_header=True)
            if set(own) <= set(columns):
                with file.open("a", encoding="utf-8", newline="") as stream:
                    csv.DictWriter(stream, columns).writerow(own)
            else:
                columns, rows = self._read(file)
                self._write(file, list(dict.fromkeys([*columns, *own])), [*rows, own])

    @staticmethod
    def _read(file: Path, *, only_header: bool = False) -> tuple[list[str], list[dict[str, Any]]]:
        if not file.is_file():
            return [], []
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or ())
            return columns, [] if only_header else [row for row in reader if (row.get("step") or "").isdecimal()]

    @staticmethod
    def _write(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class MLflowTracker(GeneralTracker):  # type: ignore[misc]
    """A run of MLflow. Accelerate's tracker uses the one active run of the process; this one leaves it alone."""

    name = "mlflow"
    requires_logging_directory = True

    def __init__(self, run: TrackedRun) -> None:
        """Begin or continue the run, in the tracking server that the user has set, or in a database in the folder."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.entities import Param

        folder = run.folder.resolve()
        uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else f"sqlite:///{folder / 'mlflow.db'}"
        self.tracker = mlflow.MlflowClient(tracking_uri=uri)
        super().__init__()
        if run.is_continued and self.name in run.ids:
            self._run_id = run.ids[self.name]
            self.tracker.update_run(self._run_id, status="RUNNING")
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self.tracker.get_experiment_by_name(project)
        location = None if mlflow.is_tracking_uri_set() else (folder / "mlflow").as_uri()
        experiment = known.experiment_id if known else self.tracker.create_experiment(project, location)
        created = self.tracker.create_run(experiment, run_name=run.name, tags={"mlflow.source.name": "peftly"})
        self._run_id = run.ids[self.name] = created.info.run_id
        limit = mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
        params = [Param(name, str(value)[:limit]) for name, value in run.settings.items()]
        for first in range(0, len(params), mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH):
            batch = params[first : first + mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH]
            self.tracker.log_batch(self._run_id, params=batch)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Log the values of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.tracker.log_batch(self._run_id, [Metric(name, value, now, step or 0) for name, value in values.items()])

    def finish(self) -> None:
        """Mark the run as finished."""
        self.tracker.set_terminated(self._run_id)


def _start_tensorboard(run: TrackedRun) -> GeneralTracker:
    purge_step = run.step + 1 if run.is_continued else None
    tracker = TensorBoardTracker("tensorboard", run.folder, purge_step=purge_step)
    tracker.main_process_only = False  # only the main process has trackers
    tracker.start()
    if not run.is_continued:
        tracker.store_init_configuration(run.settings)
    return tracker


def _start_wandb(run: TrackedRun) -> GeneralTracker:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_git=True,
        save_code=False,
        silent=True,
        symlink=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", _PROJECT),
        name=run.name,
        id=run.ids.setdefault("wandb", uuid.uuid4().hex[:8]),
        resume="allow",
        dir=str(run.folder),
        mode=mode,
        config=run.settings,
        allow_val_change=True,
        reinit="create_new",
        settings=settings,
    )
    tracker.start()
    return tracker


def _start_trackio(run: TrackedRun) -> GeneralTracker:
    run_id = run.ids.setdefault("trackio", uuid.uuid4().hex[:8])
    tracker = TrackioTracker(
        os.environ.get("TRACKIO_PROJECT", _PROJECT),
        name=f"{run.name}-{run_id}",  # a run is continued by its name
        config=run.settings,
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    Context().run(tracker.start)  # trackio finishes the run that it finds in the context
    return tracker


def _start_swanlab(run: TrackedRun) -> GeneralTracker:
    import swanlab

    probe = swanlab.Settings.Probe(
        hardware=False, runtime=False, requirements=False, git=False, swanlab=False, monitor=False
    )
    tracker = SwanLabTracker(
        os.environ.get("SWANLAB_PROJ_NAME", _PROJECT),
        name=run.name,
        id=run.ids.setdefault("swanlab", uuid.uuid4().hex[:21]),
        resume="allow",
        mode=os.environ.get("SWANLAB_MODE", "offline"),
        log_dir=str(run.folder / "swanlab"),
        config=run.settings,
        settings=swanlab.Settings(probe=probe, terminal=swanlab.Settings.Terminal(proxy_type="none")),
    )
    tracker.start()
    return tracker


class Kind(NamedTuple):
    """A kind of tracker.

    Attributes:
        start: function that returns a started tracker.
        package: package that it needs, which has the name of its module; None: none.
        view: command that shows the runs; `{folder}` is the folder of the trackers' files.
    """

    start: Callable[[TrackedRun], GeneralTracker]
    package: str | None
    view: str


KINDS: dict[str, Kind] = {
    "tensorboard": Kind(_start_tensorboard, "tensorboard", "tensorboard --logdir {folder}"),
    "wandb": Kind(_start_wandb, "wandb", "wandb sync {folder}/wandb/offline-run-*"),
    "mlflow": Kind(MLflowTracker, "mlflow", "mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db"),
    "trackio": Kind(_start_trackio, "trackio", f"trackio show --project {_PROJECT}"),
    "swanlab": Kind(_start_swanlab, "swanlab", "swanlab sync {folder}/swanlab/run-*"),
    "csv": Kind(lambda run: CsvTracker(run.folder / "csv", run.step), None, "{folder}/csv"),
}
"""Trackers by the names in `TrainConfig.report_to`."""


def check_trackers(report_to: Sequence[str], *, together: bool = False) -> None:
    """Refuse trackers that are not installed, or that cannot follow several runs of one process.

    Args:
        report_to: names of trackers, as in `TrainConfig`.
        together: whether the run is one of several side by side.

    Raises:
        ConfigError: a package is missing; the message has the command that installs it.
    """
    missing = [package for name in report_to if (package := KINDS[name].package) and not _is_installed(package)]
    if missing:
        raise ConfigError(f"train.report_to {missing[0]} needs a package: pip install {' '.join(missing)}")
    if together and "swanlab" in report_to:
        raise ConfigError(
            "train.report_to: swanlab follows one run of a process at a time; use another tracker for an ensemble or "
            "jobs, or train them one by one"
        )


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of that name, such as one of W&B's logs, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
