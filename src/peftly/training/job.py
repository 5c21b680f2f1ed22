"""One adapter under training: its examples, its optimizer, and its best and last finite weights."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from peftly.adapters import attached, num_virtual_tokens_of, trainable_parameters, use_adapters
from peftly.data import Data, EncodedExample, Split
from peftly.errors import ConfigError, TrainingError
from peftly.evaluation import Evaluation, evaluate
from peftly.injection import invalidate_cached_tensors, owner
from peftly.training.best import evaluation_record, is_best, is_improvement, metric_of_best, stop_reason
from peftly.training.callbacks import Callback, StepRecord, TrainResult
from peftly.training.checkpoint import digest, load_optimizer
from peftly.training.checks import check_trainable, first_gradients_note
from peftly.training.config import TrainConfig
from peftly.training.finite_weights import LastFiniteWeights, assign, copies
from peftly.training.memory import PeakMemory
from peftly.training.optimizer import make_optimizer, optimizer_note, parameter_groups
from peftly.training.run_log import RunLog
from peftly.training.run_state import RunState
from peftly.training.saved import SavedAdapters, weights_location
from peftly.training.schedule import make_schedule, num_epochs, schedule_notes
from peftly.training.sharding import computed_with
from peftly.training.steps import examples_of_steps, steps_per_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AdapterJob"]

_NOT_COMPARED = {"checkpoint_steps", "keep_checkpoints", "generation_examples", "report_to"}
"""Settings that a continued run may change: no step depends on them."""


class AdapterJob:
    """The training of one adapter, or of all trainable parameters of a model, on one data set.

    A step whose loss or gradient norm is not finite ends the training. Its weights may be the cause, so the model goes
    back to the `last_finite_weights`.

    Attributes:
        parameters: trained parameters, by name.
        learning_rate: highest learning rate of any parameter.
        examples_per_step: examples of a step, on all processes together.
        steps_per_epoch: steps in which every example is seen once.
        steps: steps of the whole run, unless it stops early.
        eval_steps: steps between evaluations.
        metric: metric by which the best evaluation is chosen.
        state: progress so far.
        log: records of steps and evaluations, and the callbacks.
        saved: folders of the saved adapters.
        last_finite_weights: copy of `parameters` that is known to give finite numbers.
        memory: measurement of the largest memory since the training began.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        data: Data,
        config: TrainConfig,
        tokenizer: "PreTrainedTokenizerBase",
        accelerator: "Accelerator",
        *,
        adapter: str | None = None,
        out: Path | None = None,
        callbacks: Sequence[Callback] = (),
        learning_rate: float | None = None,
        resume: bool = False,
        examples_per_step: int | None = None,
        own_tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> None:
        """Make the optimizer and the learning rate schedule, and begin `metrics.jsonl`.

        Args:
            model: adapted model.
            data: training and validation examples.
            config: training settings.
            tokenizer: tokenizer of the model.
            accelerator: accelerator of the whole run.
            adapter: name of the adapter to train, which is then the only active one for these examples; None: all
                trainable parameters, with the adapters that are active.
            out: folder for adapters and metrics; None: nothing is written.
            callbacks: callbacks that receive the events of this adapter, on the main process.
            learning_rate: learning rate if `config` sets none, in preference to the method's own.
            resume: whether `load_state_dict` will follow.
            examples_per_step: examples of a step in the checkpoint, which may be of another number of processes; None:
                as configured, on the processes of this run.
            own_tokenizer: tokenizer to save with the adapter, where it is not that of the base.

        Raises:
            ConfigError: settings that the data or the model cannot serve.
        """
        check_trainable(model, data, config, adapter=adapter, learning_rate=learning_rate)
        self.model, self.data, self.config, self.tokenizer = model, data, config, tokenizer
        self.accelerator, self.adapter, self.out = accelerator, adapter, out
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in trainable_parameters(model).items()
            if adapter is None or owner(name) == adapter
        }
        if not self.parameters:
            raise ConfigError("nothing in this model is trainable; attach an adapter first")
        groups = parameter_groups(model, config, learning_rate, among=self.parameters)
        self.learning_rate = max(float(group["lr"]) for group in groups)
        of_process = config.batch_size * config.gradient_accumulation_steps
        self.examples_per_step = examples_per_step or of_process * accelerator.num_processes
        self.steps_per_epoch = steps_per_epoch(data.train.encoded, self.examples_per_step)
        epochs = num_epochs(config, model, len(data.train.encoded))
        self.steps = config.max_steps or epochs * self.steps_per_epoch
        self.eval_steps = config.eval_steps or self.steps_per_epoch
        self.metric = metric_of_best(config, data)
        self.optimizer = make_optimizer(groups, config)
        self.schedule = self.make_schedule()
        self.state = RunState()
        eval_steps = None if data.validation is None else self.eval_steps
        self.last_finite_weights = LastFiniteWeights(self.parameters, eval_steps=eval_steps)
        self.log = RunLog(callbacks, out=out, is_main_process=accelerator.is_main_process, resume=resume)
        if not resume:
            for note in filter(None, (optimizer_note(config, model.device), *schedule_notes(config, self.steps))):
                self.log.note(note)
        out = out if accelerator.is_main_process else None
        self.memory = PeakMemory(model)
        self.saved = SavedAdapters(model, adapter, out, data.row_format, self.log, own_tokenizer)
        self.started = time.perf_counter()

    def make_schedule(self) -> LambdaLR:
        """Return the learning rate schedule of the configuration."""
        return make_schedule(self.optimizer, self.config, self.steps)

    def remaining_steps(self) -> Iterator[list[EncodedExample]]:
        """Yield the examples of every step that is left, until the last step or an early stop."""
        if not self.step:
            self.started = time.perf_counter()
        for examples in self.examples_of_steps(self.step, self.steps):
            if self.state.stopped_early:
                return
            yield examples

    def examples_of_steps(self, first: int, end: int) -> Iterator[list[EncodedExample]]:
        """Yield the examples of each step from `first` to before `end`."""
        examples, size = self.data.train.encoded, self.examples_per_step
        return examples_of_steps(examples, size, first=first, end=end, seed=self.config.seed)

    def update(self, examples: Sequence[EncodedExample], loss: float, seconds: float) -> StepRecord:
        """Update the weights by the gradients that the parameters hold; `after_step` is due then.

        Args:
            examples: examples of the step.
            loss: mean loss over their targets.
            seconds: duration of the forward and backward passes.

        Returns:
            The record of the step, which the callbacks have not received yet.

        Raises:
            TrainingError: the loss or the gradient norm is not finite, or no parameter has a gradient.
        """
        if not self.step and loss and (note := first_gradients_note(self.parameters)):
            self.log.note(note)
        limit = self.config.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters.values(), math.inf if limit is None else limit))
        rate = float(self.schedule.get_last_lr()[0])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            numbers = f"loss {loss:g}, gradient norm {norm:g} at learning rate {rate:g}"
            self.fail(f"step {self.step + 1}: {numbers}")
        self.last_finite_weights.update(self.step)
        self.optimizer.step()
        invalidate_cached_tensors()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        targets = sum(example.num_targets for example in examples)
        self.update_state(
            step=self.step + 1,
            after_step_due=True,
            train_loss_sum=self.state.train_loss_sum + loss * targets,
            train_targets=self.state.train_targets + targets,
            peak_memory_bytes=self.memory.since(self.state.peak_memory_bytes),
        )
        tokens = sum(example.num_tokens for example in examples)
        record = StepRecord(
            step=self.step,
            steps=self.steps,
            epoch=self.step / self.steps_per_epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=tokens,
            trained_tokens=targets,
            tokens_per_second=tokens / seconds,
            seconds=self.seconds,
            memory_bytes=self.state.peak_memory_bytes,
        )
        self.log.write(record)
        self.update_state()
        return record

    def after_step(self) -> None:
        """Save and evaluate if the configuration asks for it at this step; the last step is always evaluated."""
        is_last = self.step == self.steps
        if self.config.save_steps and self.step % self.config.save_steps == 0:
            self.saved.save_if_possible(f"step-{self.step}")
        changes: dict[str, Any] = {}
        if self.data.validation is not None and (is_last or self.step % self.eval_steps == 0):
            changes = self.evaluate(self.data.validation)
        patience = self.config.early_stopping_patience
        evaluations = changes.get("evaluations_since_best", 0)
        stopped_early = not is_last and patience is not None and evaluations >= patience
        if stopped_early:
            best = changes.get("best", self.state.best)
            reason = stop_reason(self.metric, evaluations, self.config.early_stopping_threshold)
            of_best = "" if best is None else f"; the best is that of step {best.step}"
            self.log.say(f"stopped early, after step {self.step} of {self.steps}: {reason}{of_best}")
        self.update_state(after_step_due=False, stopped_early=stopped_early, **changes)

    def update_state(self, **changes: Any) -> None:
        """Replace the state by one with these changes and the present size of the history and the metrics file."""
        self.state = replace(
            self.state, metrics_bytes=self.log.metrics_bytes, metrics_sha256=self.log.metrics_sha256, **changes
        )

    def finish(self) -> TrainResult:
        """Leave the best weights in the model and save them in `out`.

        Raises:
            TrainingError: there was no evaluation, and the last update left weights that are not finite.
        """
        if self.state.best_weights is None:
            if not self.has_finite_weights():
                self.fail(f"step {self.step} left weights that are not finite")
        else:
            assign(self.parameters, self.state.best_weights)
        self.saved.save("adapter")
        self.log.sync()
        peak = self.memory.since(self.state.peak_memory_bytes)
        self.update_state(seconds=self.seconds, peak_memory_bytes=peak)
        return self.result()

    def result(self) -> TrainResult:
        """Return the result of a run that has finished."""
        stopped, threshold = self.state.stopped_early, self.config.early_stopping_threshold
        return TrainResult(
            steps=self.step,
            best_step=self.step if self.state.best is None else self.state.best.step,
            best=self.state.best,
            history=tuple(self.log.history),
            seconds=self.state.seconds or self.seconds,
            stopped_early=stopped,
            metric_for_best_model=None if self.state.best is None else self.metric,
            learning_rate=self.learning_rate,
            trained_parameters=sum(parameter.numel() for parameter in self.parameters.values()),
            data=self.data,
            stop_reason=stop_reason(self.metric, self.state.evaluations_since_best, threshold) if stopped else None,
            peak_memory_bytes=self.state.peak_memory_bytes,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; see `load_state_dict`. It must not be called during an update."""
        return {
            "config": self.config.model_dump(mode="json", exclude=_NOT_COMPARED),
            "examples": self.digests,
            "learning_rates": [group["initial_lr"] for group in self.optimizer.param_groups],
            "examples_per_step": self.examples_per_step,
            "methods": {name: adapter.config.model_dump(mode="json") for name, adapter in attached(self.model).items()},
            "parameters": dict(self.parameters),
            "last_finite_weights": self.last_finite_weights.weights,
            "last_finite_step": self.last_finite_weights.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "run_state": self.state.to_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state_dict` of a job of the same run (see `check_same_run`)."""
        assign(self.parameters, state["parameters"])
        self.last_finite_weights.load(state["last_finite_weights"], state["last_finite_step"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.state = RunState.from_dict(state["run_state"], self.parameters)
        self.started = time.perf_counter() - state["seconds"]
        self.log.resume(self.state.metrics_bytes, self.state.metrics_sha256, step=self.step, steps=self.steps)

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which the adapter of this job is active."""
        return nullcontext() if self.adapter is None else use_adapters(self.model, self.adapter)

    def reuses_frozen_states(self) -> bool:
        """Return whether examples come more than once, and the outputs of frozen layers are to be cached for that."""
        return self.config.frozen_layers_once and self.steps > self.steps_per_epoch

    def num_virtual_tokens(self) -> int:
        """Return how many virtual tokens the adapter of this job adds to a text."""
        with self.active():
            return num_virtual_tokens_of(self.model)

    def evaluate(self, split: Split) -> dict[str, Any]:
        """Evaluate the weights, and return the changes of the state: whether these weights are the best so far."""
        # An evaluation has blocks of other sizes than a step, for which there is no room in the holes of the heap.
        self.memory.return_free()
        # One process decides which weights are the best: last digits may differ between processes.
        with self.active():
            scores = computed_with(self.model, partial(self._scores, split))
        self.memory.return_free()
        state, chosen = self.state, is_best(self.metric, scores, self.state.best)
        record = evaluation_record(
            scores,
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            is_best=chosen,
            seconds=self.seconds,
            train_loss=self.state.train_loss,
        )
        self.log.write(record)
        self.log.report(record)
        begin_again = {"train_loss_sum": 0.0, "train_targets": 0}
        improved = is_improvement(self.metric, scores, state.best, self.config.early_stopping_threshold)
        changes = {**begin_again, "evaluations_since_best": 0 if improved else state.evaluations_since_best + 1}
        return {**changes, "best": record, "best_weights": copies(self.parameters)} if chosen else changes

    def _scores(self, split: Split) -> Evaluation:
        size = self.config.evaluation_batch_size
        return evaluate(self.model, self.tokenizer, split, self.data.row_format, batch_size=size)

    def has_finite_weights(self) -> bool:
        """Return whether all trained parameters are finite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters.values())

    def fail(self, reason: str) -> NoReturn:
        """Put the last finite weights into the model, save them, and end the run.

        Args:
            reason: description of the numbers that are not finite.

        Raises:
            TrainingError: always.
        """
        self.last_finite_weights.restore()
        weights = f"the last finite weights (after step {self.last_finite_weights.step})"
        saved = weights_location(self.saved.save("adapter"), weights)
        raise TrainingError(f"{reason}; {saved}; {self._advice()}")

    def fail_out_of_memory(self, tokens: int) -> NoReturn:
        """Save the weights, which are those of the last step if they are finite, and end the run.

        Args:
            tokens: number of tokens that went through the model at once.

        Raises:
            TrainingError: always.
        """
        step = self.step
        if not self.has_finite_weights():
            self.last_finite_weights.restore()
            step = self.last_finite_weights.step
        saved = weights_location(self.saved.save("adapter"), f"the weights (after step {step})")
        raise TrainingError(
            f"step {self.step + 1}: memory ran out with {tokens:,} tokens at once; {saved}; "
            "lower train.micro_batch_tokens or data.max_length, or set train.gradient_checkpointing"
        )

    def _advice(self) -> str:
        """Return advice for a loss or a gradient that is not finite."""
        if self.step:
            return (
                f"lower train.learning_rate (now {self.learning_rate:g}), or raise train.warmup_ratio or "
                "train.batch_size"
            )
        return "nothing was trained yet, so look at the data, or load the base with dtype float32"

    @cached_property
    def digests(self) -> list[str | None]:
        """Hashes of the training and of the validation examples, in their order."""
        splits = (self.data.train, self.data.validation)
        return [None if split is None else digest(split.encoded) for split in splits]

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return self.state.step

    @property
    def seconds(self) -> float:
        """Seconds since training began, interruptions not counted."""
        return time.perf_counter() - self.started
