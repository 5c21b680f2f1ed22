"""Records of a training run, and callbacks that receive them or show them as progress."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from peftly.data import Data
from peftly.utils import is_main_process, score_text, share_text

__all__ = [
    "Callback",
    "EvaluationRecord",
    "ProgressBar",
    "StepRecord",
    "TrainResult",
    "from_dict",
    "to_dict",
]


@dataclass(frozen=True)
class StepRecord:
    """One update of the trained weights.

    Attributes:
        step: number of the step, from 1.
        steps: number of steps of the run, unless it stops early.
        epoch: passes over the training examples so far, with a fraction.
        loss: mean loss over the targets of the step, before the update.
        learning_rate: learning rate of the update.
        grad_norm: norm of the whole gradient, before clipping.
        tokens: number of tokens in the examples, without padding and virtual tokens.
        trained_tokens: number of targets of the loss: tokens, tags or classes.
        tokens_per_second: `tokens` divided by the duration of this step.
        seconds: seconds since the start of the run.
        memory_bytes: largest memory of the process since the training began, on the device of the model; see
            `peak_memory`. None in files of earlier versions.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    seconds: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the validation examples.

    Attributes:
        step: number of updates before the evaluation.
        epoch: passes over the training examples so far, with a fraction.
        loss: mean loss over the targets: trained tokens, tags or classes.
        perplexity: exp(loss); None if the targets are tags or classes.
        token_accuracy: fraction of the tokens or tags to which the model gives the highest probability; None for
            classes.
        accuracy: fraction of examples whose label has the highest probability; None for examples without labels.
        macro_f1: F1 averaged over labels; None for examples without labels.
        best: whether this is the best evaluation so far.
        seconds: seconds since the start of the run.
        entity_f1: F1 of entities; None for examples without tags of entities.
        train_loss: mean loss over the targets of the steps since the last evaluation, each before its update; with
            dropout, its noise counts.
        train_perplexity: exp(train_loss); None if the targets are tags or classes.
    """

    step: int
    epoch: float
    loss: float
    perplexity: float | None
    token_accuracy: float | None
    accuracy: float | None
    macro_f1: float | None
    best: bool
    seconds: float
    entity_f1: float | None = None
    train_loss: float | None = None
    train_perplexity: float | None = None


def to_dict(record: StepRecord | EvaluationRecord) -> dict[str, object]:
    """Return a record as plain values, with its `kind`."""
    return {"kind": "step" if isinstance(record, StepRecord) else "evaluation", **asdict(record)}


def from_dict(values: Mapping[str, Any]) -> StepRecord | EvaluationRecord:
    """Return the record that `to_dict` was called with."""
    inner = {key: value for key, value in values.items() if key != "kind"}
    return StepRecord(**inner) if values["kind"] == "step" else EvaluationRecord(**inner)


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    Attributes:
        steps: number of updates.
        best_step: number of updates that the weights in the model have had: those of the best evaluation, or all
            without validation examples.
        best: best evaluation; None without validation examples.
        history: all records, in order.
        seconds: duration of the run, with evaluations.
        stopped_early: whether `early_stopping_patience` ran out.
        metric_for_best_model: metric by which the best evaluation was chosen; None without validation examples.
        learning_rate: highest learning rate of the schedule.
        trained_parameters: number of trained parameters.
        data: examples of the training, with the row format and a report.
        stop_reason: reason of the early stop; None without one.
        peak_memory_bytes: largest memory of the process during the training, on the device of the model; see
            `StepRecord.memory_bytes`.
    """

    steps: int
    best_step: int
    best: EvaluationRecord | None
    history: tuple[StepRecord | EvaluationRecord, ...]
    seconds: float
    stopped_early: bool
    metric_for_best_model: str | None
    learning_rate: float
    trained_parameters: int
    data: Data = field(repr=False, compare=False)
    stop_reason: str | None = None
    peak_memory_bytes: int | None = None

    @property
    def planned_steps(self) -> int:
        """Number of updates that the run has unless it stops early."""
        return max((record.steps for record in self.history if isinstance(record, StepRecord)), default=self.steps)


class Callback:
    """Base class of callbacks of `train`; a subclass defines the events of interest."""

    def on_begin(self, step: int, steps: int, history: Sequence[StepRecord | EvaluationRecord]) -> None:
        """Called before the first step of this process, which is number `step` + 1 of `steps`.

        The history has the records of earlier processes; it is empty for a new training.
        """

    def on_step(self, record: StepRecord) -> None:
        """Called after an update of the trained weights."""

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Called after an evaluation."""

    def on_save(self, path: Path) -> None:
        """Called after an adapter was saved in the folder `path`."""

    def on_note(self, text: str) -> None:
        """Called with a note to the user: a setting that cannot be followed, or a checkpoint that was not written."""

    def on_resume(self, step: int, steps: int) -> None:
        """Called when a run continues that was stopped after `step` of `steps`; earlier events are not repeated."""


class ProgressBar(Callback):
    """A progress bar with loss, tokens per second and time left; plain lines if the output is not a terminal.

    As a context manager it removes the bar from the screen at the end, also after an error.
    """

    def __init__(self, console: Console | None = None, *, lines: int = 20, name: str = "") -> None:
        """Prepare the bar, which appears with the first step.

        Args:
            console: console of the output; None: stderr.
            lines: largest number of lines about steps if the output is not a terminal; each evaluation has a line.
            name: name in front of the bar, for one of several adapters.
        """
        self._console = console or Console(stderr=True, markup=False, emoji=False)
        self._lines = lines
        self._name = f"{name}: " if name else ""
        self._speed = 0.0
        self._parts_printed = 0
        self._bar: Progress | None = None
        if self._console.is_terminal and is_main_process():
            self._bar = Progress(
                TextColumn("{task.fields[name]}step {task.completed:.0f}/{task.total:.0f}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None, visible=False, name=self._name)

    def add_bar(self, name: str) -> "ProgressBar":
        """Return another bar on the same display, for an adapter that is trained at the same time."""
        added = ProgressBar(self._console, lines=self._lines, name=name)
        if self._bar is not None:
            added._bar = self._bar
            added._task = self._bar.add_task("", total=None, visible=False, name=added._name)
        return added

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, record: StepRecord) -> None:
        """Move the bar, or print a line if the next of `lines` parts of the run is done."""
        # An exponential moving average: one slow step, such as the first, must not change the estimate for long.
        decay = 0.9 if self._speed else 0.0
        self._speed = decay * self._speed + (1 - decay) * record.tokens_per_second
        # The estimate uses the whole time so far, since evaluations take time too.
        left = record.seconds / record.step * (record.steps - record.step)
        facts = f"loss {record.loss:.4f}  {self._speed:,.0f} tokens/s  {_duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, total=record.steps, description=facts, visible=True)
        elif self._is_due(record):
            self.on_note(f"step {record.step}/{record.steps}  {facts}")

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Print the losses, perplexities and scores."""
        losses = {"training": (record.train_loss, record.train_perplexity)}
        losses["validation"] = (record.loss, record.perplexity)
        facts = [
            f"{name} loss {_loss(loss)}" + ("" if perplexity is None else f" (perplexity {score_text(perplexity)})")
            for name, (loss, perplexity) in losses.items()
            if loss is not None
        ]
        scores = {"accuracy": record.accuracy, "macro-F1": record.macro_f1, "entity F1": record.entity_f1}
        shown = [f"{name} {share_text(score)}" for name, score in scores.items() if score is not None]
        self.on_note(f"epoch {record.epoch:.3g}  " + "  ".join([*facts, *shown[:1], *["(best)"] * record.best]))

    def _is_due(self, record: StepRecord) -> bool:
        """Return whether the next of `lines` parts of the run is done for the first time."""
        part = record.step * self._lines // record.steps
        is_due = part > self._parts_printed
        self._parts_printed = max(part, self._parts_printed)
        return is_due

    def on_resume(self, step: int, steps: int) -> None:
        """Print the step at which the run continues."""
        self.on_note(f"continuing after step {step} of {steps}")

    def on_note(self, text: str) -> None:
        """Print the text above the bar."""
        self._console.print(f"{self._name}{text}", markup=False, highlight=False, soft_wrap=True)


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else score_text(loss)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
