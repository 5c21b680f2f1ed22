"""The records of a run, and the callbacks that receive its events."""

from collections.abc import Sequence
from pathlib import Path

from peftly.training.callbacks import Callback, EvaluationRecord, StepRecord
from peftly.training.metrics import MetricsWriter
from peftly.utils import warn

__all__ = ["RunLog"]


class RunLog:
    """Keeps the records of one run, and passes its events to the callbacks.

    Attributes:
        history: records of steps and evaluations, in order.
    """

    def __init__(
        self, callbacks: Sequence[Callback] = (), *, out: Path | None, is_main_process: bool, resume: bool
    ) -> None:
        """Begin `metrics.jsonl`.

        Args:
            callbacks: callbacks of the run.
            out: folder of the run; None: no file is written.
            is_main_process: whether the process passes events to callbacks and writes the file.
            resume: whether the run continues from a checkpoint.
        """
        self.history: list[StepRecord | EvaluationRecord] = []
        self._callbacks = list(callbacks) if is_main_process else []
        self._writer: MetricsWriter | None = None
        if out is not None and is_main_process:
            self._writer = MetricsWriter(out / "metrics.jsonl", resume=resume)
            self._callbacks.insert(0, self._writer)

    @property
    def metrics_bytes(self) -> int:
        """Size of `metrics.jsonl` in bytes; 0 if it is not written."""
        return 0 if self._writer is None else self._writer.size

    @property
    def metrics_sha256(self) -> str:
        """Hash of the content of `metrics.jsonl`; empty if it is not written."""
        return "" if self._writer is None else self._writer.sha256

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Append a record to the history and to `metrics.jsonl`."""
        self.history.append(record)
        if self._writer is None:
            return
        before = self._writer.problem
        self._writer.write(record)
        if self._writer.problem is not None and before is None:
            self.note(self._writer.problem)

    def begin(self, step: int, steps: int) -> None:
        """Report that the steps begin, after `step` of `steps`."""
        for callback in self._callbacks:
            callback.on_begin(step, steps, tuple(self.history))

    def report(self, record: StepRecord | EvaluationRecord) -> None:
        """Pass a record to the callbacks."""
        for callback in self._callbacks:
            if isinstance(record, StepRecord):
                callback.on_step(record)
            else:
                callback.on_evaluate(record)

    def save(self, path: Path) -> None:
        """Report an adapter that was saved in the folder `path`."""
        for callback in self._callbacks:
            callback.on_save(path)

    def note(self, text: str) -> None:
        """Pass a note on a problem to the callbacks, and warn callers from Python."""
        warn(text, stacklevel=2)
        self.say(text)

    def say(self, text: str) -> None:
        """Pass a note to the callbacks."""
        for callback in self._callbacks:
            callback.on_note(text)

    def sync(self) -> None:
        """Wait until `metrics.jsonl` is on the disk."""
        if self._writer is not None:
            self._writer.sync()

    def resume(self, metrics_bytes: int, metrics_sha256: str, *, step: int, steps: int) -> None:
        """Continue after a checkpoint.

        Args:
            metrics_bytes, metrics_sha256: size and hash of `metrics.jsonl` when the checkpoint was written.
            step: number of updates before the checkpoint.
            steps: number of steps of the run.
        """
        note = None
        if self._writer is not None:
            self.history, note = self._writer.continue_from(metrics_bytes, metrics_sha256)
        for callback in self._callbacks:
            callback.on_resume(step, steps)
        if note is not None:
            self.note(note)
