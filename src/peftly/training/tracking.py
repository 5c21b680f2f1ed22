"""Tracking of a run by the trackers that `train.report_to` names."""

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from peftly.errors import ConfigError
from peftly.evaluation import Evaluation
from peftly.training.callbacks import Callback, EvaluationRecord, StepRecord
from peftly.training.config import TrainConfig
from peftly.training.trackers import KINDS, TrackedRun, check_trackers
from peftly.utils import warn, write_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["TRACKERS", "Tracking", "tracked"]

TRACKERS = "trackers"
"""Folder of the trackers' files in a run folder."""

_STATE = "state.json"
"""File with the ids of the run, and the number of the last step that an earlier process has logged."""


class Tracking(Callback):
    """Passes the records of a run to trackers, from the first step or the one after a checkpoint.

    A tracker that fails before the first step ends the run; one that fails later gets no more values. As a context
    manager it finishes the trackers at the end.
    """

    def __init__(
        self,
        report_to: Sequence[str],
        folder: Path,
        *,
        name: str | None = None,
        settings: Mapping[str, Any],
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the trackers; nothing is written before the training begins.

        Args:
            report_to: names of trackers, as in `TrainConfig`.
            folder: run folder.
            name: name of the run; None: that of the folder.
            settings: settings of the run, which the trackers show.
            note: function that receives lines for the user.
        """
        self._names, self._folder, self._note = tuple(report_to), folder / TRACKERS, note
        self._name = name or folder.resolve().name
        self._settings = dict(_flat(settings))
        self._trackers: dict[str, GeneralTracker] = {}
        self._ids: dict[str, str] = {}
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, tracker in self._trackers.items():
            self._call(name, tracker.finish)
        if self._trackers:
            with suppress(OSError):  # the error that has ended the run is more important
                write_json(self._folder / _STATE, {"ids": self._ids, "step": self._step})
        self._trackers = {}

    def on_begin(self, step: int, steps: int, history: Sequence[StepRecord | EvaluationRecord]) -> None:
        """Start the trackers, or continue the runs of an earlier process.

        Raises:
            ConfigError: a tracker cannot be started.
        """
        if not self._names:
            return
        state = _read_state(self._folder / _STATE)
        self._step, self._ids = step, {} if state is None else state["ids"]
        self._folder.mkdir(parents=True, exist_ok=True)
        run = TrackedRun(self._folder, self._name, self._ids, step, state is not None, self._settings)
        for name in self._names:
            try:
                with _silent():
                    self._trackers[name] = KINDS[name].start(run)
            except Exception as error:  # the errors of all libraries
                raise ConfigError(f"train.report_to {name}: {_reason(error)}; leave it out, or mend it") from error
            self._note(f"{name}: {KINDS[name].view.format(folder=self._folder)}")
        write_json(self._folder / _STATE, {"ids": self._ids})
        # A signal can come between a step and its report.
        logged = step if state is None else state.get("step", step)
        for record in history:
            if logged < record.step <= step:
                self._log("train" if isinstance(record, StepRecord) else "eval", record.step, asdict(record))

    def on_step(self, record: StepRecord) -> None:
        """Log the numbers of a step as `train/loss` and so on."""
        self._log("train", record.step, asdict(record))

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Log the losses and scores of an evaluation as `eval/loss` and so on."""
        self._log("eval", record.step, asdict(record))

    def log_final(self, evaluation: Evaluation | None) -> None:
        """Log the scores of an evaluation after the training as `final/accuracy` and so on; None: there are none."""
        if evaluation is not None:
            self._log("final", self._step, vars(evaluation))

    def _log(self, prefix: str, step: int, values: Mapping[str, object]) -> None:
        self._step = step
        numbers = {
            f"{prefix}/{name}": value
            for name, value in values.items()
            if name not in ("step", "steps") and type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
        }
        for name, tracker in list(self._trackers.items()):
            if not self._call(name, partial(tracker.log, numbers, step=step)):
                del self._trackers[name]

    def _call(self, name: str, function: Callable[[], object]) -> bool:
        """Call a function of a tracker, and return whether it succeeded: no tracker ends a training."""
        try:
            with _silent():
                function()
        except Exception as error:  # noqa: BLE001 - the errors of all libraries, of disks and networks
            line = f"{name} gets no more values of this run ({_reason(error)}); metrics.jsonl has all of them"
            warn(line, stacklevel=2)
            self._note(line)
            return False
        return True


@contextmanager
def tracked(
    callbacks: Sequence[Callback], config: TrainConfig, folder: Path | None, *, name: str | None = None
) -> Iterator[list[Callback]]:
    """Return callbacks with the trackers of `config.report_to`, which are finished behind the block.

    Args:
        callbacks: callbacks of a training. If a `Tracking` is among them, no other is added.
        config: settings of the training.
        folder: folder of the training; None: there is none.
        name: name of the run; None: that of the folder.

    Raises:
        ConfigError: there is no folder, or a tracker is not installed.
    """
    if not config.report_to or any(isinstance(callback, Tracking) for callback in callbacks):
        yield list(callbacks)
        return
    check_trackers(config.report_to)
    if folder is None:
        raise ConfigError("train.report_to needs a folder for the trackers: give train() one with out=")
    with Tracking(config.report_to, folder, name=name, settings={"train": config.model_dump(mode="json")}) as tracking:
        yield [tracking, *callbacks]


def _read_state(file: Path) -> dict[str, Any] | None:
    """Return the ids and the last step of an earlier process; None if there is none, or the file is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        ids = {str(name): str(value) for name, value in content["ids"].items()}
        return {"ids": ids} | ({"step": int(content["step"])} if "step" in content else {})
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their paths; lists become texts."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else value


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"\s+", " ", lines[0])[:200] if lines else type(error).__name__


@contextmanager
def _silent() -> Iterator[None]:
    """Hide the lines that trackers print."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
