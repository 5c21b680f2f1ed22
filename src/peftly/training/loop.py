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

from peftly.data import EncodedExample
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
from peftly.training.job import AdapterJob
from peftly.utils import interruptions_held

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Loop"]

CHECKPOINT_SECONDS = 600
"""Between checkpoints, where no number of steps is set."""


class Loop:
    """Steps of all adapter_jobs, of which each takes as many as it has.

    Attributes:
        results: of the adapter_jobs that have finished.
        at_work: the adapter_job that something is done for at this moment.
        gradients: makes the gradients of the steps.
        file: the checkpoint, from which the loop can go on if it is stopped; None: there is none.
        before: of a checkpoint, what a step changes besides weights: as it was before the step.
        is_whole: whether no weight is changing, so that a checkpoint can be written.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        adapter_jobs: Sequence[AdapterJob],
        accelerator: "Accelerator",
        *,
        packed: bool,
        file: Path | None = None,
    ) -> None:
        self.model, self.adapter_jobs, self.accelerator = model, adapter_jobs, accelerator
        self.gradients = Gradients(model, adapter_jobs, accelerator, packed=packed)
        self.at_work, self.file = adapter_jobs[0], file
        self.results: dict[AdapterJob, TrainResult] = {}
        self.before: dict[str, Any] = {}
        self.is_whole = False
        self.written = time.perf_counter()

    def go(self) -> list[TrainResult]:
        """Take steps until nobody has one left; whoever has none left is finished at once."""
        with self.changing():
            self.gradients.begin()
        streams = [(adapter_job, adapter_job.steps_left()) for adapter_job in self.adapter_jobs]
        while True:
            for adapter_job in self.adapter_jobs:
                if adapter_job.at.due:
                    self.at_work = adapter_job
                    adapter_job.after_step()
            if self.checkpoint_is_due():
                self.write_checkpoint()
            with self.changing():
                work = self.next_rows(streams)
            if not work:
                return [self.results[adapter_job] for adapter_job in self.adapter_jobs]
            self.at_work = work[0][0]
            began = time.perf_counter()
            losses = self.gradients.of(work)
            seconds = time.perf_counter() - began
            # Whose loss is no number gives up first: oneDNN's products in bf16 may take it on into the gradients of the
            # others, who would be blamed, and changed, before it.
            done = sorted(zip(work, losses, strict=True), key=lambda one: math.isfinite(one[1]))
            with self.changing():
                for (adapter_job, rows), loss in done:
                    self.at_work = adapter_job
                    adapter_job.update(rows, loss, seconds)

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
        self, streams: Sequence[tuple[AdapterJob, Iterator[list[EncodedExample]]]]
    ) -> list[tuple[AdapterJob, list[EncodedExample]]]:
        """Return the rows of everybody's next step, and finish who has no more."""
        work = []
        for adapter_job, stream in streams:
            if adapter_job in self.results:
                continue
            rows = next(stream, None)
            if rows is not None:
                work.append((adapter_job, rows))
            else:
                self.at_work = adapter_job
                self.results[adapter_job] = adapter_job.finish()
        return work

    def checkpoint_is_due(self) -> bool:
        """Return whether enough steps, or minutes, have passed since the last one; on every process the same."""
        every = [
            adapter_job.config.checkpoint_steps
            for adapter_job in self.adapter_jobs
            if adapter_job.config.checkpoint_steps
        ]
        if self.file is None:
            return False
        if every:
            step = max(adapter_job.step for adapter_job in self.adapter_jobs)
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
            self.adapter_jobs[0].note(f"no checkpoint at step {self.adapter_jobs[0].step}: {error.strerror or error}")

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from, but for the generators: as of the last moment without a change."""
        return {
            "base": self.base,
            "computes_with": computes_with(self.model.device),
            "adapter_jobs": {str(adapter_job.adapter): adapter_job.state() for adapter_job in self.adapter_jobs},
            "buffers": {name: buffer for name, buffer in self.model.named_buffers() if owner(name)},
            "gradients": self.before["gradients"],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            ConfigError: that was another run.
        """
        names = [str(adapter_job.adapter) for adapter_job in self.adapter_jobs]
        if names != list(state["adapter_jobs"]):
            raise ConfigError(
                f"the checkpoint is of a run that trained {', '.join(state['adapter_jobs'])}, not {', '.join(names)}; "
                "begin anew"
            )
        if self.base != state["base"]:
            raise ConfigError("the checkpoint is of a run over another base, or in another dtype; begin anew")
        for name, adapter_job in zip(names, self.adapter_jobs, strict=True):
            check_same_run(adapter_job.state(), state["adapter_jobs"][name])
        for name, adapter_job in zip(names, self.adapter_jobs, strict=True):
            adapter_job.restore(state["adapter_jobs"][name])
            if adapter_job.at.seconds is not None:
                self.results[adapter_job] = adapter_job.result()
        buffers = dict(self.model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
        self.gradients.restore(state["gradients"])
        set_random_states(state["random"][self.accelerator.process_index], self.model.device)
        then, now = state["computes_with"], computes_with(self.model.device)
        if then != now:
            other = ", ".join(f"{key} {then[key]}, now {now[key]}" for key in now if then.get(key) != now[key])
            self.adapter_jobs[0].note(
                f"the run was begun elsewhere ({other}): last digits may differ from what it had given"
            )
