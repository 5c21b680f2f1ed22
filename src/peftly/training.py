"""The training loop: one, for every method and task.

A step's loss is the sum over all its targets (trained tokens, tags or classes), in all its batches on all processes,
divided by their number: never a mean of means, so that 1 example x 8 accumulated batches and 8 x 1 are the same step.
Every process knows the rows of the whole step, so this number costs no communication.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftly.adapt import attached, use_adapters, use_places
from peftly.attention import packed, packs
from peftly.data import Data, Encoded
from peftly.errors import ConfigError, TrainingError
from peftly.modes import training_mode
from peftly.objective import target_losses
from peftly.progress import Callback, TrainResult
from peftly.steps import make_accelerator, process_batches
from peftly.tasks import task_for
from peftly.train_config import TrainConfig
from peftly.trainee import Trainee, found_in

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Job", "TrainConfig", "TrainResult", "lays_end_to_end", "train", "train_together"]


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
    job = Job(data, config or TrainConfig(), learning_rate)
    (result,) = _train(model, {None: job}, tokenizer, {None: None if out is None else Path(out)}, {None: callbacks})
    return result


@dataclass(frozen=True)
class Job:
    """What one of several adapters is trained on.

    Attributes:
        data: its rows.
        config: how long, how fast.
        learning_rate: used if `config` names none, before the method's own.
    """

    data: Data
    config: TrainConfig = field(default_factory=TrainConfig)
    learning_rate: float | None = None


def train_together(
    model: "PreTrainedModel",
    jobs: Mapping[str, Job],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path | None = None,
    callbacks: Mapping[str, Sequence[Callback]] | None = None,
) -> dict[str, TrainResult]:
    """Train several adapters of a model side by side, each on rows of its own, in shared batches over the one base.

    What comes of each is what training it alone would give, to rounding: its rows, their order, its optimizer and its
    best weights are its own. (Dropout draws other numbers.)

    Args:
        model: a model with these adapters.
        jobs: by the adapter's name. A step takes a batch of each, and the base reads them as one.
        tokenizer: the model's own.
        out: a folder with a folder for each adapter, as `train` has it; None: nothing is written.
        callbacks: by the adapter's name, as `train` takes them.

    Returns:
        What `train` returns, for each.

    Raises:
        ConfigError, DataError, TrainingError, KeyboardInterrupt: as `train` does; weights so far are kept likewise.
    """
    unknown = [name for name in jobs if name not in attached(model)]
    if unknown or not jobs:
        raise ConfigError(
            f"there is no adapter {unknown[0]!r} to train; the model has {', '.join(map(repr, attached(model)))}"
            if unknown
            else "there is no job; name an adapter and what it is to be trained on"
        )
    places = {name: None if out is None else Path(out) / name for name in jobs}
    results = _train(model, jobs, tokenizer, places, callbacks or {})
    return dict(zip(jobs, results, strict=True))


def lays_end_to_end(model: "PreTrainedModel", config: TrainConfig) -> bool:
    """Whether `train` lays the examples of a batch end to end, in one row without padding.

    It does not where the base's attention cannot be told where an example ends.
    """
    return config.packing and packs(model)


def _train(
    model: "PreTrainedModel",
    jobs: Mapping[Any, Job],
    tokenizer: "PreTrainedTokenizerBase",
    places: Mapping[Any, Path | None],
    callbacks: Mapping[Any, Sequence[Callback]],
) -> list[TrainResult]:
    """Train every job; one of name None is all that is trainable, with what is on."""
    from accelerate.utils import set_seed

    accelerator = make_accelerator()
    if len(jobs) > 1 and accelerator.num_processes > 1:
        raise ConfigError("train_together runs in one process; train the adapters one by one on several")
    trainees = [
        Trainee(
            model,
            job.data,
            job.config,
            tokenizer,
            accelerator,
            adapter=name,
            out=places[name],
            callbacks=callbacks.get(name, ()),
            learning_rate=job.learning_rate,
        )
        for name, job in jobs.items()
    ]
    first = trainees[0].config
    # Dropout differs between processes; the order of the rows and fresh weights do not come from this generator.
    set_seed(first.seed, device_specific=True)
    loop = _Loop(model, trainees, accelerator)
    checkpointing = any(trainee.config.gradient_checkpointing for trainee in trainees)
    packing = all(lays_end_to_end(model, trainee.config) for trainee in trainees)
    with training_mode(model, gradient_checkpointing=checkpointing), packed(model) if packing else nullcontext():
        try:
            return loop.go()
        except KeyboardInterrupt as interrupt:
            left = [trainee for trainee in trainees if trainee not in loop.results]
            reached = [f"stopped at step {trainee.step} of {trainee.steps}" for trainee in left]
            saved = [found_in(trainee.save("adapter-interrupted")) for trainee in left]
            told = [f"{step}; {place}" for step, place in zip(reached, saved, strict=True)]
            raise KeyboardInterrupt("; ".join(told)) from interrupt
        except TrainingError as error:
            left = [trainee for trainee in trainees if trainee not in loop.results and trainee is not loop.at_work]
            saved = [found_in(trainee.save("adapter-interrupted"), f"those of {trainee.adapter}") for trainee in left]
            raise TrainingError("; ".join([str(error), *saved])) from error
        finally:
            accelerator.free_memory()


class _Loop:
    """Steps of all trainees, of which each takes as many as it has.

    Attributes:
        results: of the trainees that have finished.
        at_work: the trainee that something is done for at this moment.
    """

    def __init__(self, model: "PreTrainedModel", trainees: Sequence[Trainee], accelerator: "Accelerator") -> None:
        self.model, self.trainees, self.accelerator = model, trainees, accelerator
        self.wrapped: nn.Module = accelerator.prepare_model(model)
        tasks = [task_for(model, trainee.data.train, trainee.data.shape) for trainee in trainees]
        self.logits_of = tasks[0].logits
        self.at_work = trainees[0]
        self.results: dict[Trainee, TrainResult] = {}

    def go(self) -> list[TrainResult]:
        """Take steps until nobody has one left; whoever has none left is finished at once."""
        streams = [(trainee, trainee.steps_left()) for trainee in self.trainees]
        while work := self.next_rows(streams):
            began = time.perf_counter()
            losses = self.gradients(work)
            seconds = time.perf_counter() - began
            for (trainee, rows), loss in zip(work, losses, strict=True):
                self.at_work = trainee
                trainee.update(rows, loss, seconds)
        return [self.results[trainee] for trainee in self.trainees]

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

    def gradients(self, work: Sequence[tuple[Trainee, Sequence[Encoded]]]) -> list[float]:
        """Leave the gradient of each one's mean loss over its rows in its parameters, and return those losses."""
        rows = [row for _, own in work for row in own]
        owners = [place for place, (_, own) in enumerate(work) for _ in own]
        counts = torch.tensor([float(max(1, sum(row.num_targets for row in own))) for _, own in work])
        size = sum(trainee.config.batch_size for trainee, _ in work)
        mine = process_batches(rows, size, self.accelerator, work[0][0].tokenizer)
        found = []
        for number, (places, batch) in enumerate(mine):
            last = number == len(mine) - 1
            whose = [owners[place] for place in places]
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped), self.chosen(work, whose, batch):
                sums = self.sums(batch, [rows[place] for place in places], whose, len(work))
                # Data parallelism averages gradients over the processes; the sum is what is wanted.
                scale = self.accelerator.num_processes / counts.to(sums)
                self.accelerator.backward((sums * scale).sum())
            found.append(sums.detach())
        total = self.accelerator.reduce(torch.stack(found).sum(0), "sum")
        return [float(loss) for loss in total.double().cpu() / counts]

    def sums(self, batch: Mapping[str, Tensor], rows: Sequence[Encoded], whose: Sequence[int], jobs: int) -> Tensor:
        """Return the summed loss of each job's rows in a batch, (jobs,)."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        with use_places(self.model, batch.get("places")):
            losses = target_losses(self.wrapped, inputs, self.logits_of)
        if jobs == 1:
            return losses.sum()[None]
        # Targets come row by row.
        targets = torch.tensor([row.num_targets for row in rows], dtype=torch.long)
        owners = torch.tensor(whose, dtype=torch.long).repeat_interleave(targets).to(losses.device)
        return torch.stack([losses[owners == place].sum() for place in range(jobs)])

    def chosen(
        self, work: Sequence[tuple[Trainee, Sequence[Encoded]]], whose: Sequence[int], batch: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Return a block in which each row of a batch has the adapter that it trains."""
        if len(work) == 1:
            return work[0][0].chosen()
        names = [work[place][0].adapter for place in whose] or [None] * len(batch["input_ids"])
        return use_adapters(self.model, rows=names)
