"""The records of a run, and the callbacks that receive its events."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from peftly.training.callbacks import Callback, EvaluationRecord, MetricsWriter, StepRecord

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

    def add(self, record: StepRecord | EvaluationRecord) -> None:
        """Append a record to the history, and pass it to the callbacks."""
        self.history.append(record)
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
        """Pass a note to the callbacks, and warn callers from Python."""
        warnings.warn(text, stacklevel=2)
        for callback in self._callbacks:
            callback.on_note(text)

    def resume(
        self, history: Sequence[StepRecord | EvaluationRecord], metrics_bytes: int, *, step: int, steps: int
    ) -> None:
        """Continue after a checkpoint.

        Args:
            history: records of the checkpoint.
            metrics_bytes: size of `metrics.jsonl` when the checkpoint was written.
            step: number of updates before the checkpoint.
            steps: number of steps of the run.
        """
        self.history = list(history)
        if self._writer is not None:
            self._writer.truncate(metrics_bytes, self.history)
        for callback in self._callbacks:
            callback.on_resume(step, steps)
