"""The training loop: one, for every method and task; and from where it goes on when it was stopped."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from peftly.data import Encoded
from peftly.errors import ConfigError
from peftly.injection import owner
from peftly.training.callbacks import TrainResult
from peftly.training.checkpoint import (
    check_same_run,
    computes_with,
    fingerprint,
    random_states,
    set_random_states,
    write_state,
)
from peftly.training.gradients import Gradients
from peftly.training.job import Trainee
from peftly.utils import interruptions_held

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Loop"]

CHECKPOINT_SECONDS = 600
"""Between checkpoints, where no number of steps is set."""


class Loop:
    """Steps of all trainees, of which each takes as many as it has.

    Attributes:
        results: of the trainees that have finished.
        at_work: the trainee that something is done for at this moment.
        gradients: makes the gradients of the steps.
        file: the checkpoint, from which the loop can go on if it is stopped; None: there is none.
        before: of a checkpoint, what a step changes besides weights: as it was before the step.
        is_whole: whether no weight is changing, so that a checkpoint can be written.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        trainees: Sequence[Trainee],
        accelerator: "Accelerator",
        *,
        packed: bool,
        file: Path | None = None,
    ) -> None:
        self.model, self.trainees, self.accelerator = model, trainees, accelerator
        self.gradients = Gradients(model, trainees, accelerator, packed=packed)
        self.at_work, self.file = trainees[0], file
        self.results: dict[Trainee, TrainResult] = {}
        self.before: dict[str, Any] = {}
        self.is_whole = False
        self.written = time.perf_counter()

    def go(self) -> list[TrainResult]:
        """Take steps until nobody has one left; whoever has none left is finished at once."""
        with self.changing():
            self.gradients.begin()
        streams = [(trainee, trainee.steps_left()) for trainee in self.trainees]
        while True:
            for trainee in self.trainees:
                if trainee.at.due:
                    self.at_work = trainee
                    trainee.after_step()
            if self.checkpoint_is_due():
                self.write_checkpoint()
            with self.changing():
                work = self.next_rows(streams)
            if not work:
                return [self.results[trainee] for trainee in self.trainees]
            self.at_work = work[0][0]
            began = time.perf_counter()
            losses = self.gradients.of(work)
            seconds = time.perf_counter() - began
            # Whose loss is no number gives up first: oneDNN's products in bf16 may take it on into the gradients of the
            # others, who would be blamed, and changed, before it.
            done = sorted(zip(work, losses, strict=True), key=lambda one: math.isfinite(one[1]))
            with self.changing():
                for (trainee, rows), loss in done:
                    self.at_work = trainee
                    trainee.update(rows, loss, seconds)

    @cached_property
    def base(self) -> dict[str, Any]:
        """What tells the base from others."""
        return fingerprint(self.model)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While weights change, when no checkpoint can be made: Ctrl-C waits for the end of it."""
        with interruptions_held():
            self.is_whole = False
            yield
            self.before = {"random": random_states(self.model.device), "gradients": self.gradients.state()}
            self.is_whole = True

    def next_rows(
        self, streams: Sequence[tuple[Trainee, Iterator[list[Encoded]]]]
    ) -> list[tuple[Trainee, list[Encoded]]]:
        """Return the rows of everybody's next step, and finish who has no more."""
        work = []
        for trainee, stream in streams:
            if trainee in self.results:
                continue
            rows = next(stream, None)
            if rows is not None:
                work.append((trainee, rows))
            else:
                self.at_work = trainee
                self.results[trainee] = trainee.finish()
        return work

    def checkpoint_is_due(self) -> bool:
        """Return whether enough steps, or minutes, have passed since the last one; on every process the same."""
        every = [trainee.config.checkpoint_every for trainee in self.trainees if trainee.config.checkpoint_every]
        if self.file is None:
            return False
        if every:
            step = max(trainee.step for trainee in self.trainees)
            return step > 0 and step % min(every) == 0
        due = time.perf_counter() - self.written >= CHECKPOINT_SECONDS
        if self.accelerator.num_processes == 1:
            return due
        told = torch.tensor([float(due)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    def write_checkpoint(self) -> None:
        """Write a checkpoint, on the main process; where there is no room for it, say so."""
        random = gather_object([self.before["random"]])
        self.written = time.perf_counter()
        if self.file is None or not self.accelerator.is_main_process:
            return
        try:
            write_state(self.file, {**self.state(), "random": random})
        except OSError as error:
            self.trainees[0].note(f"no checkpoint at step {self.trainees[0].step}: {error.strerror or error}")

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from, but for the generators: as of the last moment without a change."""
        return {
            "base": self.base,
            "computes_with": computes_with(self.model.device),
            "trainees": {str(trainee.adapter): trainee.state() for trainee in self.trainees},
            "buffers": {name: buffer for name, buffer in self.model.named_buffers() if owner(name)},
            "gradients": self.before["gradients"],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            ConfigError: that was another run.
        """
        names = [str(trainee.adapter) for trainee in self.trainees]
        if names != list(state["trainees"]):
            raise ConfigError(
                f"the checkpoint is of a run that trained {', '.join(state['trainees'])}, not {', '.join(names)}; "
                "begin anew"
            )
        if self.base != state["base"]:
            raise ConfigError("the checkpoint is of a run over another base, or in another dtype; begin anew")
        for name, trainee in zip(names, self.trainees, strict=True):
            check_same_run(trainee.state(), state["trainees"][name])
        for name, trainee in zip(names, self.trainees, strict=True):
            trainee.restore(state["trainees"][name])
            if trainee.at.seconds is not None:
                self.results[trainee] = trainee.result()
        buffers = dict(self.model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
        self.gradients.restore(state["gradients"])
        set_random_states(state["random"][self.accelerator.process_index], self.model.device)
        then, now = state["computes_with"], computes_with(self.model.device)
        if then != now:
            other = ", ".join(f"{key} {then[key]}, now {now[key]}" for key in now if then.get(key) != now[key])
            self.trainees[0].note(
                f"the run was begun elsewhere ({other}): last digits may differ from what it had given"
            )
