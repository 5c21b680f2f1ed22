"""What a run tells while it goes: small records, and callbacks that write them to a file or draw them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

__all__ = [
    "Callback",
    "EvaluationRecord",
    "MetricsWriter",
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
        step: its number, from 1.
        steps: how many there will be, unless the run stops early.
        epoch: passes over the training rows so far, with a fraction.
        loss: mean over the targets of the step, before the update.
        learning_rate: what the update used.
        grad_norm: length of the whole gradient, before it was cut.
        tokens: tokens that the model read, padding not counted.
        trained_tokens: targets that the loss is about: tokens, tags or classes.
        tokens_per_second: `tokens` over the duration of this step.
        seconds: since the start of the run.
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


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the validation rows.

    Attributes:
        step: after which step.
        epoch: passes over the training rows so far, with a fraction.
        loss: mean over the targets of the validation rows: trained tokens, tags or classes.
        perplexity: exp(loss); None where the targets are no text.
        token_accuracy: share of those tokens or tags that the model would have chosen itself; None for classes.
        accuracy: share of rows whose label is the likeliest; None for rows without labels.
        macro_f1: F1 averaged over labels; None for rows without labels.
        best: whether it is the best evaluation so far.
        seconds: since the start of the run.
        entity_f1: F1 of entities; None for rows without tags of entities.
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


def to_dict(record: StepRecord | EvaluationRecord) -> dict[str, object]:
    """Return a record as plain values, its `kind` among them."""
    return {"kind": "step" if isinstance(record, StepRecord) else "evaluation", **asdict(record)}


def from_dict(values: Mapping[str, Any]) -> StepRecord | EvaluationRecord:
    """Return what `to_dict` was given."""
    inner = {key: value for key, value in values.items() if key != "kind"}
    return StepRecord(**inner) if values["kind"] == "step" else EvaluationRecord(**inner)


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        steps: how many updates were made.
        best_step: after which of them the weights were best; they are the ones in the model now. Without validation
            rows it is the last.
        best: the evaluation then; None without validation rows.
        history: every record, in order.
        seconds: the duration of the run, evaluations included.
        stopped_early: whether `early_stopping_patience` ran out.
        learning_rate: the highest that was asked for.
        trained_parameters: how many numbers were trained.
    """

    steps: int
    best_step: int
    best: EvaluationRecord | None
    history: tuple[StepRecord | EvaluationRecord, ...]
    seconds: float
    stopped_early: bool
    learning_rate: float
    trained_parameters: int


class Callback:
    """What `train` calls; inherit from it and define the events of interest."""

    def on_step(self, record: StepRecord) -> None:
        """Follow an update of the trained weights."""

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Follow an evaluation."""

    def on_save(self, path: Path) -> None:
        """Follow the saving of an adapter into the folder `path`."""

    def on_note(self, text: str) -> None:
        """Hear of something that did not go as it was set."""

    def on_resume(self, step: int, steps: int) -> None:
        """Hear that a run goes on that was stopped after `step` of `steps`; what it told before is not told again."""


class MetricsWriter(Callback):
    """Writes one JSON object a line, as soon as it is known: `kind` is `step`, `evaluation`, `save` or `note`."""

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        """Begin the file `path`; or, to `resume` a run, go on with the one that is there."""
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not (resume and path.is_file()):
            self.path.write_text("", encoding="utf-8")

    @property
    def size(self) -> int:
        """Bytes that the file has."""
        return self.path.stat().st_size

    def cut(self, size: int, records: Sequence[StepRecord | EvaluationRecord]) -> None:
        """Drop what the file has beyond `size` bytes, of steps that are taken again.

        If it has less, or something else, than had been written, it is written again from the `records` of then.
        """
        with self.path.open("rb") as file:
            kept = file.read(size)
        if len(kept) == size and (not kept or kept.endswith(b"\n")):
            os.truncate(self.path, size)
            return
        self.path.write_text("", encoding="utf-8")
        for record in records:
            self._write(to_dict(record))

    def on_step(self, record: StepRecord) -> None:
        """Write the record."""
        self._write(to_dict(record))

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Write the record."""
        self._write(to_dict(record))

    def on_save(self, path: Path) -> None:
        """Write the name of the folder."""
        self._write({"kind": "save", "folder": path.name})

    def on_note(self, text: str) -> None:
        """Write the text."""
        self._write({"kind": "note", "text": text})

    def _write(self, entry: dict[str, object]) -> None:
        # JSON has no word for infinity; a perplexity can overflow.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")


class ProgressBar(Callback):
    """A bar with loss, tokens a second and time left; where output is no terminal, at most `lines` plain lines.

    A context manager: leaving it takes the bar off the screen in an orderly way, after an error too.
    """

    def __init__(self, console: Console | None = None, *, lines: int = 20, name: str = "") -> None:
        self._console = console or Console(stderr=True)
        self._lines = lines
        self._name = f"{name}: " if name else ""
        self._speed = 0.0
        self._validation = ""
        self._printed = 0
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[name]}step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None, visible=False, name=self._name)

    def beside(self, name: str) -> "ProgressBar":
        """Return another bar, for what is trained at the same time, which shows and goes with this one."""
        other = ProgressBar(self._console, lines=self._lines, name=name)
        if self._bar is not None:
            other._bar = self._bar
            other._task = self._bar.add_task("", total=None, visible=False, name=other._name)
        return other

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
        """Move the bar, or print a line when the next twentieth is done."""
        # A mean that forgets: one slow step (the first, say) must not spoil the forecast for long.
        keep = 0.9 if self._speed else 0.0
        self._speed = keep * self._speed + (1 - keep) * record.tokens_per_second
        # Evaluations are part of the wait, so the forecast goes by the whole time so far.
        left = record.seconds / record.step * (record.steps - record.step)
        facts = f"loss {record.loss:.4f}  {self._speed:,.0f} tokens/s  {_duration(left)} left{self._validation}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, total=record.steps, description=facts, visible=True)
        elif record.step * self._lines // record.steps > self._printed:
            self._printed = record.step * self._lines // record.steps
            self._console.print(
                f"{self._name}step {record.step}/{record.steps}  {facts}", highlight=False, soft_wrap=True
            )

    def on_evaluate(self, record: EvaluationRecord) -> None:
        """Show the validation scores with the steps that follow."""
        scores = {"accuracy": record.accuracy, "entity F1": record.entity_f1}
        shown = "".join(f" {name} {score:.1%}" for name, score in scores.items() if score is not None)
        self._validation = f"  validation loss {record.loss:.4f}{shown}{' (best)' if record.best else ''}"

    def on_resume(self, step: int, steps: int) -> None:
        """Print where the run goes on."""
        self.on_note(f"going on after step {step} of {steps}")

    def on_note(self, text: str) -> None:
        """Print the text, above a bar."""
        self._console.print(f"{self._name}{text}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
