"""One adapter under training: its rows, its optimizer, and its best weights so far. The loop is in `training`."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from peftly.adapters import attached, num_virtual_tokens_of, save_adapter, trainable_parameters, use_adapters
from peftly.data import Data, EncodedExample, Split
from peftly.errors import ConfigError, TrainingError
from peftly.evaluation import Evaluation, evaluate
from peftly.injection import owner
from peftly.training.callbacks import (
    Callback,
    EvaluationRecord,
    MetricsWriter,
    StepRecord,
    TrainResult,
    from_dict,
    to_dict,
)
from peftly.training.checkpoint import digest, load_optimizer
from peftly.training.checks import check_trainable
from peftly.training.config import TrainConfig
from peftly.training.optimizer import make_optimizer, make_schedule, optimizer_note, parameter_groups
from peftly.training.run_state import RunState
from peftly.training.steps import step_rows, steps_of_epoch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AdapterJob", "found_in"]


class AdapterJob:
    """What is trained on one set of rows: one adapter, or all that is trainable in a model."""

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
    ) -> None:
        """Get ready.

        Args:
            model: an adapted model.
            data: its rows.
            config: how long, how fast.
            tokenizer: the model's own.
            accelerator: of the whole run.
            adapter: the only one that is trained, on for these rows; None: all that is trainable, with what is on.
            out: where it is saved; None: nowhere.
            callbacks: are told of every step, evaluation and saved adapter, on the main process.
            learning_rate: used if `config` names none, before the method's own.
            resume: whether `restore` will follow.

        Raises:
            ConfigError: settings that the data or the model cannot serve.
        """
        check_trainable(model, data, config, adapter=adapter, learning_rate=learning_rate)
        self.model, self.data, self.config, self.tokenizer = model, data, config, tokenizer
        self.accelerator, self.adapter, self.out, self.callbacks = accelerator, adapter, out, list(callbacks)
        own = {name for name in trainable_parameters(model) if adapter is None or owner(name) == adapter}
        self.parameters = {name: value for name, value in trainable_parameters(model).items() if name in own}
        if not self.parameters:
            raise ConfigError("nothing in this model is trainable; attach an adapter first")
        groups = parameter_groups(model, config, learning_rate, among=self.parameters)
        self.rate = max(float(group["lr"]) for group in groups)
        self.rows_per_step = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = steps_of_epoch(data.train.encoded, self.rows_per_step)
        self.steps = config.max_steps or config.epochs * self.steps_per_epoch
        self.optimizer = make_optimizer(groups, config)
        self.schedule = make_schedule(self.optimizer, config, self.steps)
        self.at = RunState()
        self.history: list[StepRecord | EvaluationRecord] = []
        self.good, self.last_finite_step = _copied(self.parameters), 0
        self.writer: MetricsWriter | None = None
        if out is not None and accelerator.is_main_process:
            self.writer = MetricsWriter(out / "metrics.jsonl", resume=resume)
            self.callbacks.insert(0, self.writer)
        line = optimizer_note(config, model.device)
        if line and not resume:
            self.note(line)
        self.started = time.perf_counter()

    def steps_left(self) -> Iterator[list[EncodedExample]]:
        """Yield the rows of every step, until the last one or an early stop."""
        if not self.step:
            self.started = time.perf_counter()
        for rows in self.rows_of_steps(self.step, self.steps):
            if self.at.stopped:
                return
            yield rows

    def rows_of_steps(self, first: int, end: int) -> Iterator[list[EncodedExample]]:
        """Yield the rows of the steps from `first` to before `end`."""
        rows, size = self.data.train.encoded, self.rows_per_step
        return step_rows(rows, size, first=first, end=end, seed=self.config.seed)

    def update(self, rows: Sequence[EncodedExample], loss: float, seconds: float) -> None:
        """Change the weights, whose gradients are there; `after_step` is due then.

        Args:
            rows: that the gradients are of.
            loss: the mean over their targets.
            seconds: that the gradients took.
        """
        limit = self.config.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters.values(), math.inf if limit is None else limit))
        rate = float(self.schedule.get_last_lr()[0])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = f"loss {loss:g}, gradient norm {norm:g} at learning rate {rate:g}"
            self.give_up(f"step {self.step + 1}: {found}")
        # These weights have just given a finite loss and gradient; what the update makes of them is not known yet.
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.good[name].copy_(parameter)
        self.last_finite_step = self.step
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.stand(step=self.step + 1, due=True)
        tokens = sum(row.num_tokens for row in rows)
        self.tell(
            StepRecord(
                step=self.step,
                steps=self.steps,
                epoch=self.step / self.steps_per_epoch,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=tokens,
                trained_tokens=sum(row.num_targets for row in rows),
                tokens_per_second=tokens / seconds,
                seconds=self.seconds,
            )
        )
        self.stand()

    def after_step(self) -> None:
        """Save and evaluate where the configuration says so; the last step is always evaluated."""
        last = self.step == self.steps
        if self.config.save_steps and self.step % self.config.save_steps == 0:
            self.save(f"step-{self.step}")
        due = last or self.step % (self.config.eval_steps or self.steps_per_epoch) == 0
        found = self.look(self.data.validation) if self.data.validation is not None and due else {}
        patience = self.config.early_stopping_patience
        stopped = not last and patience is not None and found.get("waited", 0) >= patience
        self.stand(due=False, stopped=stopped, **found)

    def stand(self, **changes: Any) -> None:
        """Note how far this has come, all at once."""
        written = 0 if self.writer is None else self.writer.size
        self.at = replace(self.at, told=len(self.history), written=written, **changes)

    def finish(self) -> TrainResult:
        """Leave the best weights in the model and in `out`."""
        if self.at.best_weights is None:
            if not all(bool(parameter.isfinite().all()) for parameter in self.parameters.values()):
                self.give_up(f"step {self.step} left weights that are no numbers")
        else:
            _put_back(self.parameters, self.at.best_weights)
        self.save("adapter")
        self.stand(seconds=self.seconds)
        return self.result()

    def result(self) -> TrainResult:
        """Return how it went, once it is finished."""
        return TrainResult(
            steps=self.step,
            best_step=self.step if self.at.best is None else self.at.best.step,
            best=self.at.best,
            history=tuple(self.history),
            seconds=self.at.seconds or self.seconds,
            stopped_early=self.at.stopped,
            learning_rate=self.rate,
            trained_parameters=sum(parameter.numel() for parameter in self.parameters.values()),
        )

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from. No weight may be changing."""
        return {
            "config": self.config.model_dump(mode="json", exclude={"checkpoint_steps"}),
            "rows": self.digests,
            "rates": [group["initial_lr"] for group in self.optimizer.param_groups],
            "rows_per_step": self.rows_per_step,
            "methods": {name: one.config.model_dump(mode="json") for name, one in attached(self.model).items()},
            "parameters": dict(self.parameters),
            "good": self.good,
            "last_finite_step": self.last_finite_step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [to_dict(record) for record in self.history[: self.at.told]],
            "standing": self.at.state(),
            "spent": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state` was taken, by a adapter_job of the same run (see `check_same_run`)."""
        _put_back(self.parameters, state["parameters"])
        _put_back(self.good, state["good"])
        self.last_finite_step = state["last_finite_step"]
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = [from_dict(record) for record in state["history"]]
        self.at = RunState.restored(state["standing"], self.good)
        if self.writer is not None:
            self.writer.cut(self.at.written, self.history)
        self.started = time.perf_counter() - state["spent"]
        for callback in self.callbacks:
            callback.on_resume(self.step, self.steps)

    def chosen(self) -> AbstractContextManager[None]:
        """Return a block in which what is trained here is on."""
        return nullcontext() if self.adapter is None else use_adapters(self.model, self.adapter)

    def keeps_states(self) -> bool:
        """Return whether rows come again, and what frozen layers make of them is to be kept."""
        return self.config.frozen_layers_once and self.steps > self.steps_per_epoch

    def virtual_tokens(self) -> int:
        """Return how many virtual tokens a text has with what is trained here."""
        with self.chosen():
            return num_virtual_tokens_of(self.model)

    def look(self, split: Split) -> dict[str, Any]:
        """Evaluate, and return what that changes of where this stands: whether the weights are the best so far."""
        size = self.config.evaluation_batch_size
        with self.chosen():
            found = evaluate(self.model, self.tokenizer, split, self.data.row_format, batch_size=size)
        best = self.at.best
        better = math.isfinite(found.loss) and (best is None or self.rank(found) < self.rank(best))
        record = EvaluationRecord(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            loss=found.loss,
            perplexity=found.perplexity,
            token_accuracy=found.token_accuracy,
            accuracy=found.accuracy,
            macro_f1=found.macro_f1,
            entity_f1=found.entity_f1,
            best=better,
            seconds=self.seconds,
        )
        self.tell(record)
        if not better:
            return {"waited": self.at.waited + 1}
        return {"waited": 0, "best": record, "best_weights": _copied(self.parameters)}

    def rank(self, scores: Evaluation | EvaluationRecord) -> tuple[float, float]:
        """Return what is smaller for the better of two evaluations."""
        metric = self.config.metric_for_best_model
        return (scores.loss if metric == "loss" else -(getattr(scores, metric) or 0.0), scores.loss)

    def give_up(self, why: str, advice: str | None = None) -> NoReturn:
        """Go back to the last good weights and say why.

        Args:
            why: what was found.
            advice: what to do; None: see `advice`.

        Raises:
            TrainingError: always.
        """
        _put_back(self.parameters, self.good)
        found = found_in(self.save("adapter"), f"the last good weights (after step {self.last_finite_step})")
        raise TrainingError(f"{why}; {found}; {advice or self.advice()}")

    def advice(self) -> str:
        """Return what helps where numbers have become too large."""
        if self.step:
            return f"lower train.learning_rate (now {self.rate:g}), or raise train.warmup_ratio or train.batch_size"
        return "nothing was trained yet, so look at the data, or load the base with dtype float32"

    def save(self, name: str) -> Path | None:
        """Write the adapter as it is to the folder `name` in `out`, if there is one."""
        if self.out is None or not self.accelerator.is_main_process:
            return None
        notes = {"row_format": self.data.row_format.to_dict()}
        path = save_adapter(self.model, self.out / name, name=self.adapter, notes=notes)
        for callback in self.callbacks:
            callback.on_save(path)
        return path

    def tell(self, record: StepRecord | EvaluationRecord) -> None:
        """Note a record down, and let the callbacks know."""
        self.history.append(record)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                if isinstance(record, StepRecord):
                    callback.on_step(record)
                else:
                    callback.on_evaluate(record)

    def note(self, text: str) -> None:
        """Say what a person should know, to the callbacks and to whoever calls from Python."""
        warnings.warn(text, stacklevel=2)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback.on_note(text)

    @cached_property
    def digests(self) -> list[str | None]:
        """What only these rows, in this order, have: of those to train on and those to validate on."""
        splits = (self.data.train, self.data.validation)
        return [None if split is None else digest(split.encoded) for split in splits]

    @property
    def step(self) -> int:
        """How many updates were made."""
        return self.at.step

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.perf_counter() - self.started


def _copied(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _put_back(parameters: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(copies[name])


def found_in(place: Path | None, what: str = "the weights so far") -> str:
    """Say where weights are: in a folder, or only in the model."""
    return f"{what} are in {place or 'the model'}"
