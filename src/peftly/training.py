"""The training loop: one, for every method and task.

A step's loss is the sum over all its targets (trained tokens, tags or classes), in all its batches on all processes,
divided by their number: never a mean of means, so that 1 example x 8 accumulated batches and 8 x 1 are the same step.
Every process knows the rows of the whole step, so this number costs no communication.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from peftly.adapt import trainable_parameters
from peftly.checkpoint import save_adapter
from peftly.data import Data, Encoded, Split
from peftly.errors import ConfigError, TrainingError
from peftly.evaluation import Evaluation, evaluate
from peftly.modes import training_mode
from peftly.objective import token_loss
from peftly.optimizer import make_optimizer, make_schedule, parameter_groups
from peftly.progress import Callback, EvaluationRecord, MetricsWriter, StepRecord, TrainResult
from peftly.scores import metrics_of
from peftly.steps import make_accelerator, process_batches, step_rows, steps_of_epoch
from peftly.tasks import task_for
from peftly.train_config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TrainConfig", "TrainResult", "train"]


def train(
    model: "PreTrainedModel",
    data: Data,
    config: TrainConfig | None = None,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    learning_rate: float | None = None,
) -> TrainResult:
    """Train what is trainable in `model`, in place, and leave the best weights in it.

    Args:
        model: an adapted model; of its other parameters none changes.
        data: what to train on; validation rows decide which weights are best.
        config: how long, how fast; None: the defaults.
        tokenizer: the model's own.
        out: a folder for `adapter` (the best), `step-N` and `metrics.jsonl`; None: nothing is written.
        callbacks: are told of every step, evaluation and saved adapter, on the main process.
        learning_rate: used if `config` names none, before the method's own.

    Raises:
        ConfigError: settings that this data or model cannot serve.
        DataError: rows that are encoded for another task than the model's.
        TrainingError: a loss or gradient that is no number; the last good weights are in the model, and in `out`.
        KeyboardInterrupt: as it came; the weights so far are in the model, and in `adapter-interrupted` in `out`.
    """
    config = config or TrainConfig()
    _check(config, data)
    if not trainable_parameters(model):
        raise ConfigError("nothing in this model is trainable; attach an adapter first")
    groups = parameter_groups(model, config, learning_rate)
    run = _Run(model, data, config, tokenizer, None if out is None else Path(out), list(callbacks), groups)
    with training_mode(model, gradient_checkpointing=config.gradient_checkpointing):
        try:
            return run.go()
        except KeyboardInterrupt as interrupt:
            place = run.save("adapter-interrupted")
            raise KeyboardInterrupt(f"stopped at step {run.step} of {run.steps}; {_found(place)}") from interrupt
        finally:
            run.accelerator.free_memory()


class _Run:
    """One run under way."""

    def __init__(
        self,
        model: "PreTrainedModel",
        data: Data,
        config: TrainConfig,
        tokenizer: "PreTrainedTokenizerBase",
        out: Path | None,
        callbacks: list[Callback],
        groups: list[dict[str, Any]],
    ) -> None:
        from accelerate.utils import set_seed

        self.model, self.data, self.config, self.tokenizer = model, data, config, tokenizer
        self.out, self.callbacks = out, callbacks
        self.rate = max(float(group["lr"]) for group in groups)
        self.accelerator = make_accelerator()
        # Dropout differs between processes; the order of the rows and fresh weights do not come from this generator.
        set_seed(config.seed, device_specific=True)
        self.logits_of = task_for(model, data.train, data.shape).logits
        self.rows_per_step = config.batch_size * config.accumulation * self.accelerator.num_processes
        self.steps_per_epoch = steps_of_epoch(data.train.encoded, self.rows_per_step)
        self.steps = config.max_steps or config.epochs * self.steps_per_epoch
        self.wrapped: nn.Module = self.accelerator.prepare_model(model)
        self.parameters = trainable_parameters(model)
        self.optimizer = make_optimizer(groups, config)
        self.schedule = make_schedule(self.optimizer, config, self.steps)
        self.step, self.best_step, self.waited = 0, 0, 0
        self.best: EvaluationRecord | None = None
        self.history: list[StepRecord | EvaluationRecord] = []
        self.good, self.good_step = _copied(self.parameters), 0
        self.best_weights: dict[str, Tensor] | None = None
        if out is not None and self.accelerator.is_main_process:
            self.callbacks.insert(0, MetricsWriter(out / "metrics.jsonl"))
        self.started = time.perf_counter()

    def go(self) -> TrainResult:
        config, validation, stopped = self.config, self.data.validation, False
        for rows in step_rows(self.data.train.encoded, self.rows_per_step, steps=self.steps, seed=config.seed):
            self.update(rows)
            last = self.step == self.steps
            if config.save_every and self.step % config.save_every == 0:
                self.save(f"step-{self.step}")
            due = last or self.step % (config.evaluate_every or self.steps_per_epoch) == 0
            if validation is not None and due:
                self.look(validation)
                stopped = not last and config.patience is not None and self.waited >= config.patience
            if stopped:
                break
        if self.best_weights is None:
            if not all(bool(parameter.isfinite().all()) for parameter in self.parameters.values()):
                self.give_up(f"step {self.step} left weights that are no numbers")
            self.best_step = self.step
        else:
            _put_back(self.parameters, self.best_weights)
        self.save("adapter")
        return TrainResult(
            steps=self.step,
            best_step=self.best_step,
            best=self.best,
            history=tuple(self.history),
            seconds=self.seconds,
            stopped_early=stopped,
            learning_rate=self.rate,
            trained_parameters=sum(parameter.numel() for parameter in self.parameters.values()),
        )

    def update(self, rows: Sequence[Encoded]) -> None:
        """Make one step: gradients of all its rows, one change of the weights."""
        began = time.perf_counter()
        trained = sum(row.num_targets for row in rows)
        loss = self.gradients(rows, trained)
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
        self.good_step = self.step
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
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
                trained_tokens=trained,
                tokens_per_second=tokens / (time.perf_counter() - began),
                seconds=self.seconds,
            )
        )

    def gradients(self, rows: Sequence[Encoded], trained: int) -> float:
        """Leave the gradient of the mean loss over `rows` in the parameters and return that loss."""
        losses, mine = [], process_batches(rows, self.config.batch_size, self.accelerator, self.tokenizer)
        for place, batch in enumerate(mine):
            with nullcontext() if place == len(mine) - 1 else self.accelerator.no_sync(self.wrapped):
                inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                loss, _ = token_loss(self.wrapped, inputs, self.logits_of)
                # Data parallelism averages gradients over the processes; the sum is what is wanted.
                self.accelerator.backward(loss * (self.accelerator.num_processes / max(1, trained)))
            losses.append(loss.detach())
        total = self.accelerator.reduce(torch.stack(losses).sum(), "sum")
        return float(total) / max(1, trained)

    def look(self, split: Split) -> None:
        """Evaluate, and keep a copy of the weights if they are the best so far."""
        size = self.config.evaluation_batch_size
        found = evaluate(self.model, self.tokenizer, split, self.data.shape, batch_size=size)
        better = math.isfinite(found.loss) and (self.best is None or self.rank(found) < self.rank(self.best))
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
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best, self.best_step, self.best_weights = record, self.step, _copied(self.parameters)
        self.tell(record)

    def rank(self, scores: Evaluation | EvaluationRecord) -> tuple[float, float]:
        """Return what is smaller for the better of two evaluations."""
        metric = self.config.metric
        return (scores.loss if metric == "loss" else -(getattr(scores, metric) or 0.0), scores.loss)

    def give_up(self, why: str) -> NoReturn:
        """Go back to the last good weights and say why.

        Raises:
            TrainingError: always.
        """
        _put_back(self.parameters, self.good)
        found = _found(self.save("adapter"), f"the last good weights (after step {self.good_step})")
        if self.step:
            advice = f"lower train.learning_rate (now {self.rate:g}), or raise train.warmup or train.batch_size"
        else:
            advice = "nothing was trained yet, so look at the data, or load the base with dtype float32"
        raise TrainingError(f"{why}; {found}; {advice}")

    def save(self, name: str) -> Path | None:
        """Write the adapter as it is to the folder `name` in `out`, if there is one."""
        if self.out is None or not self.accelerator.is_main_process:
            return None
        path = save_adapter(self.model, self.out / name, notes={"shape": self.data.shape.to_dict()})
        for callback in self.callbacks:
            callback.on_save(path)
        return path

    def tell(self, record: StepRecord | EvaluationRecord) -> None:
        self.history.append(record)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                if isinstance(record, StepRecord):
                    callback.on_step(record)
                else:
                    callback.on_evaluate(record)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def _check(config: TrainConfig, data: Data) -> None:
    if not data.train.encoded:
        raise ConfigError("there is nothing to train on: data.train has no rows left")
    if data.validation is None:
        needs = [name for name in ("evaluate_every", "patience") if getattr(config, name) is not None]
        needs += ["metric"] * (config.metric != "loss")
        if needs:
            raise ConfigError(
                f"train.{needs[0]} needs validation rows; give data.validation or a data.validation_fraction above 0"
            )
    metrics = metrics_of(data.shape)
    if config.metric not in metrics:
        raise ConfigError(
            f"train.metric {config.metric} is no score of rows of kind {data.shape.kind!r}; "
            f"they have {', '.join(metrics)}"
        )


def _copied(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _put_back(parameters: Mapping[str, nn.Parameter], copies: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(copies[name])


def _found(place: Path | None, what: str = "the weights so far") -> str:
    return f"{what} are in {place or 'the model'}"
