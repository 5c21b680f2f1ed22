"""The training loop: steps, evaluations and checkpoints of all jobs, and continuing from a checkpoint."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from peftly.data import EncodedExample
from peftly.errors import ConfigError
from peftly.injection import owner
from peftly.models import exact_difference, exact_identity
from peftly.training.callbacks import TrainResult
from peftly.training.checkpoint import (
    check_same_run,
    computes_with,
    random_states,
    write_checkpoint,
)
from peftly.training.gradients import StepGradients
from peftly.training.job import AdapterJob
from peftly.training.processes import largest, resume_random_states, stop_error
from peftly.utils import stops_held

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["TrainingLoop"]

CHECKPOINT_SECONDS = 600
"""Seconds between checkpoints if `checkpoint_steps` is not set."""


class TrainingLoop:
    """The steps of all jobs. A job that has fewer steps than others finishes earlier.

    Attributes:
        results: results of the jobs that have finished.
        current_job: job that is being updated, evaluated or saved; after an error, the job that failed.
        gradients: gradients of the steps.
        folder: folder of the checkpoints; None: no checkpoint is written.
        state_before_step: state saved before each step (random generators, loss scale, micro-batch limits), so that a
            checkpoint written in the middle of a step starts the step again.
        is_consistent: whether the weights are those of a whole number of steps, so that a checkpoint can be written.
        checkpoint_time: time of the last checkpoint, by `time.perf_counter`.
        stops: numbers of the stop signals that this process has received, if several processes are to stop together.
        stops_together: whether all processes stop after the same step.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        jobs: Sequence[AdapterJob],
        accelerator: "Accelerator",
        *,
        packed: bool,
        folder: Path | None = None,
        stops: Sequence[int] = (),
    ) -> None:
        self.model, self.jobs, self.accelerator = model, jobs, accelerator
        self.gradients = StepGradients(model, jobs, accelerator, packed=packed)
        self.current_job, self.folder = jobs[0], folder
        self.stops, self.stops_together = stops, False
        self.results: dict[AdapterJob, TrainResult] = {}
        self.state_before_step: dict[str, Any] = {}
        self.is_consistent = False
        self.checkpoint_time = time.perf_counter()

    def run(self) -> list[TrainResult]:
        """Take steps until no job has one left, and return the results of all jobs in their order."""
        for job in self.jobs:
            job.log.begin(job.step, job.steps)
        with self.weights_changing():
            self.gradients.set_micro_batch_limit()
        streams = [(job, job.remaining_steps()) for job in self.jobs]
        while True:
            for job in self.jobs:
                if job.state.after_step_due:
                    self.current_job = job
                    job.after_step()
            is_due, stop = largest([self.checkpoint_is_due(), max(self.stops, default=0)])
            if is_due and not stop:
                self.capture_state()  # callbacks may have drawn random numbers
                self.write_checkpoint()
            if stop:
                self.stops_together = True
                raise stop_error(int(stop))
            with self.weights_changing():
                work = self.next_examples(streams)
            if not work:
                return [self.results[job] for job in self.jobs]
            self.current_job = work[0][0]
            started = time.perf_counter()
            losses = self.gradients.compute(work)
            seconds = time.perf_counter() - started
            # A job whose loss is not finite comes first and fails. In bf16, oneDNN's matrix products can spread NaN
            # into the gradients of the other jobs, which would then be updated, or fail in its stead.
            updates = sorted(zip(work, losses, strict=True), key=lambda update: math.isfinite(update[1]))
            records = []
            with self.weights_changing():
                for (job, examples), loss in updates:
                    self.current_job = job
                    records.append((job, job.update(examples, loss, seconds)))
            for job, record in records:
                job.log.report(record)

    @cached_property
    def base(self) -> dict[str, Any]:
        """Identity of the base model."""
        return exact_identity(self.model)

    @contextmanager
    def weights_changing(self) -> Iterator[None]:
        """Hold stop signals back while weights change, since no checkpoint can be written then."""
        with stops_held():
            self.is_consistent = False
            yield
            self.capture_state()
            self.is_consistent = True

    def capture_state(self) -> None:
        """Save the state from which the next step starts."""
        self.state_before_step = {
            "random": random_states(self.model.device),
            "gradients": self.gradients.state_dict(),
        }

    def next_examples(
        self, streams: Sequence[tuple[AdapterJob, Iterator[list[EncodedExample]]]]
    ) -> list[tuple[AdapterJob, list[EncodedExample]]]:
        """Return the examples of every job's next step, and finish the jobs that have no step left."""
        work = []
        for job, stream in streams:
            if job in self.results:
                continue
            examples = next(stream, None)
            if examples is not None:
                work.append((job, examples))
            else:
                self.current_job = job
                self.results[job] = job.finish()
        return work

    def checkpoint_is_due(self) -> bool:
        """Return whether enough steps, or seconds, have passed since the last checkpoint."""
        if self.folder is None:
            return False
        intervals = [job.config.checkpoint_steps for job in self.jobs if job.config.checkpoint_steps]
        if intervals:
            step = max(job.step for job in self.jobs)
            return step > 0 and step % min(intervals) == 0
        return time.perf_counter() - self.checkpoint_time >= CHECKPOINT_SECONDS

    def write_checkpoint(self, *, together: bool = True) -> None:
        """Write a checkpoint on the main process; a full disk gives a note, not an error.

        Args:
            together: whether all processes call this after the same step. Otherwise the checkpoint lacks the random
                generators of the others, so that dropout draws other masks after it.
        """
        own = [self.state_before_step["random"]]
        random = gather_object(own) if together else own
        self.checkpoint_time = time.perf_counter()
        if self.folder is None or not self.accelerator.is_main_process:
            return
        step, keep = max(job.step for job in self.jobs), max(job.config.keep_checkpoints for job in self.jobs)
        try:
            with stops_held():
                for job in self.jobs:
                    job.log.sync()
                write_checkpoint(self.folder, step, {**self.state_dict(), "random": random}, keep=keep)
        except OSError as error:
            self.jobs[0].log.note(f"no checkpoint at step {step}: {error.strerror or error}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, without the random generators; see `load_state_dict`."""
        return {
            "base": self.base,
            "computes_with": computes_with(self.model.device),
            "jobs": {str(job.adapter): job.state_dict() for job in self.jobs},
            "buffers": {name: buffer for name, buffer in self.model.named_buffers() if owner(name)},
            "gradients": self.state_before_step["gradients"],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: the checkpoint is of another run.
        """
        names = [str(job.adapter) for job in self.jobs]
        if names != list(state["jobs"]):
            raise ConfigError(
                f"the checkpoint is of a run that trained {', '.join(state['jobs'])}, not {', '.join(names)}; "
                "train from the beginning"
            )
        difference = exact_difference(self.base, state["base"])
        if difference is not None:
            raise ConfigError(
                f"the checkpoint is of a run over another base: {difference}; continue over the base that the run was "
                "started with, or train from the beginning"
            )
        for name, job in zip(names, self.jobs, strict=True):
            check_same_run(job.state_dict(), state["jobs"][name])
        for name, job in zip(names, self.jobs, strict=True):
            job.load_state_dict(state["jobs"][name])
            if job.state.seconds is not None:
                self.results[job] = job.result()
        buffers = dict(self.model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
        self.gradients.load_state_dict(state["gradients"])
        first = self.jobs[0]
        if note := resume_random_states(state["random"], self.accelerator, seed=first.config.seed, step=first.step):
            first.log.note(f"{note}; a step has {first.examples_per_step} examples as before")
        saved, now = state["computes_with"], computes_with(self.model.device)
        if saved != now:
            changes = ", ".join(f"{key} {saved[key]}, now {now[key]}" for key in now if saved.get(key) != now[key])
            self.jobs[0].log.note(
                f"the run was started in another environment ({changes}): results may differ in the last digits"
            )
