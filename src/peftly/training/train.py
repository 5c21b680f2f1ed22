"""Train what is trainable in a model: one adapter, or several side by side."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import attached
from peftly.data import Data
from peftly.errors import ConfigError, TrainingError
from peftly.injection import lean_blocks, training_mode
from peftly.kernels import packed, packs
from peftly.training.callbacks import Callback, TrainResult
from peftly.training.checkpoint import CHECKPOINT, read_state
from peftly.training.config import TrainConfig
from peftly.training.job import AdapterJob, found_in
from peftly.training.loop import Loop
from peftly.training.steps import make_accelerator

if TYPE_CHECKING:
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
    resume: bool = False,
) -> TrainResult:
    """Train what is trainable in `model`, in place, and leave the best weights in it.

    Args:
        model: an adapted model; of its other parameters none changes.
        data: what to train on; validation rows decide which weights are best.
        config: how long, how fast; None: the defaults.
        tokenizer: the model's own.
        out: a folder for `adapter` (the best), `step-N`, `metrics.jsonl` and, from time to time, a checkpoint that
            holds all that training can go on from; None: nothing is written.
        callbacks: are told of every step, evaluation and saved adapter, on the main process.
        learning_rate: used if `config` names none, before the method's own.
        resume: go on from the checkpoint in `out`, if there is one. On as many threads, and with the same torch and
            instructions, the adapter gets the bytes that it would have had without a stop.

    Raises:
        ConfigError: settings that this data or model cannot serve; a checkpoint of another run.
        DataError: rows that are encoded for another task than the model's.
        TrainingError: a loss or gradient that is no number; the last good weights are in the model, and in `out`. Or a
            checkpoint that is damaged.
        KeyboardInterrupt: as it came; the weights so far are in the model, and in `adapter-interrupted` in `out`.
    """
    job, folder = Job(data, config or TrainConfig(), learning_rate), None if out is None else Path(out)
    (result,) = _train(model, {None: job}, tokenizer, folder, {None: folder}, {None: callbacks}, resume=resume)
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
    resume: bool = False,
) -> dict[str, TrainResult]:
    """Train several adapters of a model side by side, each on rows of its own, in shared batches over the one base.

    What comes of each is what training it alone would give, to rounding: its rows, their order, its optimizer and its
    best weights are its own. (Dropout draws other numbers.)

    Args:
        model: a model with these adapters.
        jobs: by the adapter's name. A step takes a batch of each, and the base reads them as one.
        tokenizer: the model's own.
        out: a folder with a folder for each adapter, as `train` has it, and one checkpoint; None: nothing is written.
        callbacks: by the adapter's name, as `train` takes them.
        resume: as for `train`.

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
    folder = None if out is None else Path(out)
    places = {name: None if folder is None else folder / name for name in jobs}
    results = _train(model, jobs, tokenizer, folder, places, callbacks or {}, resume=resume)
    return dict(zip(jobs, results, strict=True))


def lays_end_to_end(model: "PreTrainedModel", *configs: TrainConfig) -> bool:
    """Whether training by these settings lays the examples of a batch end to end, in one row without padding.

    It does not where the base's attention cannot be told where an example ends, nor where several adapters are trained,
    as layers find their adapters by the rows of a batch.
    """
    return len(configs) == 1 and configs[0].packing and packs(model)


def _train(
    model: "PreTrainedModel",
    jobs: Mapping[Any, Job],
    tokenizer: "PreTrainedTokenizerBase",
    out: Path | None,
    places: Mapping[Any, Path | None],
    callbacks: Mapping[Any, Sequence[Callback]],
    *,
    resume: bool,
) -> list[TrainResult]:
    """Train every job; one of name None is all that is trainable, with what is on."""
    from accelerate.utils import set_seed

    accelerator = make_accelerator()
    if len(jobs) > 1 and accelerator.num_processes > 1:
        raise ConfigError("train_together runs in one process; train the adapters one by one on several")
    file = None if out is None else out / CHECKPOINT
    state = read_state(file) if resume and file is not None and file.is_file() else None
    if file is not None and state is None and accelerator.is_main_process:
        file.unlink(missing_ok=True)  # of another run
    adapter_jobs = [
        AdapterJob(
            model,
            job.data,
            job.config,
            tokenizer,
            accelerator,
            adapter=name,
            out=places[name],
            callbacks=callbacks.get(name, ()),
            learning_rate=job.learning_rate,
            resume=state is not None,
        )
        for name, job in jobs.items()
    ]
    first = adapter_jobs[0].config
    # Dropout differs between processes; the order of the rows and fresh weights do not come from this generator.
    set_seed(first.seed, device_specific=True)
    checkpointing = any(adapter_job.config.gradient_checkpointing for adapter_job in adapter_jobs)
    configs = [adapter_job.config for adapter_job in adapter_jobs]
    packing = all(lays_end_to_end(model, config) for config in configs)  # evaluations have one adapter
    loop = Loop(model, adapter_jobs, accelerator, packed=lays_end_to_end(model, *configs), file=file)
    mode = training_mode(model, gradient_checkpointing=checkpointing)
    with mode, packed(model) if packing else nullcontext(), lean_blocks(model), loop.gradients.modes:
        try:
            if state is not None:
                loop.restore(state)
            return loop.go()
        except KeyboardInterrupt as interrupt:
            if loop.is_whole and accelerator.num_processes == 1:  # others are at who knows what
                loop.write_checkpoint()
            left = [adapter_job for adapter_job in adapter_jobs if adapter_job not in loop.results]
            reached = [f"stopped at step {adapter_job.step} of {adapter_job.steps}" for adapter_job in left]
            saved = [found_in(adapter_job.save("adapter-interrupted")) for adapter_job in left]
            told = [f"{step}; {place}" for step, place in zip(reached, saved, strict=True)]
            raise KeyboardInterrupt("; ".join(told)) from interrupt
        except TrainingError as error:
            left = [
                adapter_job
                for adapter_job in adapter_jobs
                if adapter_job not in loop.results and adapter_job is not loop.at_work
            ]
            saved = [
                found_in(adapter_job.save("adapter-interrupted"), f"those of {adapter_job.adapter}")
                for adapter_job in left
            ]
            raise TrainingError("; ".join([str(error), *saved])) from error
        finally:
            accelerator.free_memory()
