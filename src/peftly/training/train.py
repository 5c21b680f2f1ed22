"""Training of one adapter, or of several adapters in shared batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import attached
from peftly.data import Data
from peftly.errors import AdapterError, ConfigError, Stopped, TrainingError
from peftly.injection import lean_blocks, training_mode
from peftly.kernels import supports_packing, use_packed_attention
from peftly.training.callbacks import Callback, TrainResult
from peftly.training.checkpoint import checkpoint_files, read_checkpoint
from peftly.training.config import TrainConfig
from peftly.training.job import AdapterJob, weights_location
from peftly.training.loop import TrainingLoop
from peftly.training.processes import num_processes, on_main_process, saved_examples_per_step
from peftly.training.sharding import shard_base
from peftly.training.steps import make_accelerator
from peftly.utils import (
    MARK,
    delete_file,
    folder_lock,
    make_folder,
    mark_text,
    read_mark,
    stops_held,
    stops_noted,
    stops_raised,
    write_text,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Job", "TrainConfig", "TrainResult", "packs_examples", "train", "train_together"]


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
    delete_checkpoints: bool = True,
) -> TrainResult:
    """Train the trainable parameters of a model in place, and leave the best weights in the model.

    Args:
        model: adapted model. Its other parameters do not change.
        data: training examples; the validation examples decide which weights are the best. Without validation examples
            the last weights are the result.
        config: training settings; None: the defaults.
        tokenizer: tokenizer of the model.
        out: folder for the best adapter (`adapter`), adapters saved on the way (`step-N`), `metrics.jsonl` and the
            checkpoints; None: nothing is written.
        callbacks: callbacks that receive steps, evaluations, saved adapters and notes, on the main process.
        learning_rate: learning rate if `config` sets none, in preference to the method's own.
        resume: continue from the checkpoint in `out`, if there is one. With the same number of threads, the same
            version of torch and the same CPU instructions or GPU, the adapter has the same bytes as without a stop.
        delete_checkpoints: delete the checkpoints in `out` when the training has finished and its adapter is on the
            disk. Nothing else deletes them: after an error or a stop they stay.

    Returns:
        Number of steps, best evaluation and history of the run.

    Raises:
        ConfigError: settings that the data or the model cannot serve, a checkpoint of another run, a checkpoint of an
            unfinished training without `resume`, another process that writes into `out`, or files in `out` that the
            training would replace and that no training wrote.
        DataError: examples that are encoded for another task than the model's.
        TrainingError: a loss or a gradient that is not finite; the last copy of finite weights is in the model, and in
            `adapter` in `out`. The copy lacks at most a tenth of the steps, and at most 20 steps. Or memory that runs
            out with one example at once; the weights so far are there. Or a damaged checkpoint.
        KeyboardInterrupt: Ctrl-C, or SIGTERM, SIGHUP or SIGUSR1; the present weights are in the model, and in
            `adapter-interrupted` in `out`.
    """
    job, folder = Job(data, config or TrainConfig(), learning_rate), None if out is None else Path(out)
    (result,) = _train(
        model,
        {None: job},
        tokenizer,
        folder,
        {None: folder},
        {None: callbacks},
        resume=resume,
        delete_checkpoints=delete_checkpoints,
    )
    return result


@dataclass(frozen=True)
class Job:
    """The data and the settings of one of several adapters; see `train_together`.

    Attributes:
        data: training and validation examples.
        config: training settings.
        learning_rate: learning rate if `config` sets none, in preference to the method's own.
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
    delete_checkpoints: bool = True,
) -> dict[str, TrainResult]:
    """Train several adapters of a model, each on its own examples, in shared batches over the one base.

    A step takes the next examples of every adapter, and the base computes all of them as one batch. Each adapter gets
    the weights that training it alone would give, to rounding; with dropout, other masks are drawn.

    Args:
        model: model with these adapters attached.
        jobs: data and settings by the name of the adapter. An adapter with fewer steps than others finishes earlier.
        tokenizer: tokenizer of the model.
        out: folder that gets one folder for each adapter, with the files that `train` writes, and one checkpoint; None:
            nothing is written.
        callbacks: callbacks of each adapter by its name; see `train`.
        resume, delete_checkpoints: see `train`.

    Returns:
        The result of each adapter by its name; see `train`.

    Raises:
        ConfigError: an adapter that the model does not have, several processes, or a reason given in `train`.
        DataError: see `train`.
        TrainingError: see `train`. The present weights of the adapters that did not fail and have not finished are in
            `adapter-interrupted` in their folders.
        KeyboardInterrupt: see `train`.
    """
    unknown = [name for name in jobs if name not in attached(model)]
    if unknown or not jobs:
        raise ConfigError(
            f"there is no adapter {unknown[0]!r} to train; the model has {', '.join(map(repr, attached(model)))}"
            if unknown
            else "there is no job; name an adapter and its data"
        )
    folder = None if out is None else Path(out)
    folders = {name: None if folder is None else folder / name for name in jobs}
    results = _train(
        model, jobs, tokenizer, folder, folders, callbacks or {}, resume=resume, delete_checkpoints=delete_checkpoints
    )
    return dict(zip(jobs, results, strict=True))


def packs_examples(model: "PreTrainedModel", *configs: TrainConfig) -> bool:
    """Return whether training packs the examples of a batch into one sequence without padding.

    Examples are padded where the model does not support packed attention or has no hooks of an adapter, and where
    several adapters are trained, since layers find the adapters of an example by its index in the batch.

    Args:
        model: model to train.
        configs: settings of all adapters that are trained together.
    """
    return len(configs) == 1 and configs[0].packing and bool(attached(model)) and supports_packing(model)


def _train(
    model: "PreTrainedModel",
    jobs: Mapping[Any, Job],
    tokenizer: "PreTrainedTokenizerBase",
    out: Path | None,
    folders: Mapping[Any, Path | None],
    callbacks: Mapping[Any, Sequence[Callback]],
    *,
    resume: bool,
    delete_checkpoints: bool,
) -> list[TrainResult]:
    """Train all jobs, and return their results in order.

    Args:
        model: see `train`.
        jobs: jobs by adapter; the name None stands for all trainable parameters, with the adapters that are active.
        tokenizer: see `train`.
        out: folder of the checkpoint.
        folders: folder of each job.
        callbacks: callbacks of each job.
        resume, delete_checkpoints: see `train`.
    """
    shards = any(job.config.fsdp for job in jobs.values())
    # The blocks of a base that will be sharded move to their devices one by one.
    accelerator = make_accelerator(on_cpu=model.device.type == "cpu" and not shards)
    if len(jobs) > 1 and accelerator.num_processes > 1:
        raise ConfigError("train_together runs in one process; train the adapters one by one on several")
    if shards and accelerator.num_processes == 1 and not resume:
        raise ConfigError("train.fsdp shards the base over several processes; start them with torchrun")
    if out is None or not accelerator.is_main_process:
        lock: AbstractContextManager[None] = nullcontext()
    else:
        make_folder(out)
        lock = folder_lock(out)
    # Several processes stop after the same step, so that they can write a checkpoint together.
    stops: AbstractContextManager[Sequence[int]] = stops_noted()
    if accelerator.num_processes == 1:
        stops = nullcontext(())
    with lock, stops_raised(), stops as numbers:
        results = _train_in(model, jobs, tokenizer, accelerator, out, folders, callbacks, numbers, resume=resume)
        if delete_checkpoints and out is not None and accelerator.is_main_process:
            for file in checkpoint_files(out):
                delete_file(file)
    return results


def _train_in(
    model: "PreTrainedModel",
    jobs: Mapping[Any, Job],
    tokenizer: "PreTrainedTokenizerBase",
    accelerator: "Accelerator",
    out: Path | None,
    folders: Mapping[Any, Path | None],
    callbacks: Mapping[Any, Sequence[Callback]],
    stops: Sequence[int],
    *,
    resume: bool,
) -> list[TrainResult]:
    """Train all jobs in a folder that no other process writes into; see `_train`."""
    from accelerate.utils import set_seed

    if any(job.config.fsdp for job in jobs.values()) and accelerator.num_processes > 1:
        shard_base(model, accelerator.device)
    damaged: list[str] = []
    state = on_main_process(partial(_saved_state, out, tuple(folders.values()), damaged.append, resume=resume))
    adapter_jobs = [
        AdapterJob(
            model,
            job.data,
            job.config,
            tokenizer,
            accelerator,
            adapter=name,
            out=folders[name],
            callbacks=callbacks.get(name, ()),
            learning_rate=job.learning_rate,
            resume=state is not None,
            examples_per_step=saved_examples_per_step(state, name),
        )
        for name, job in jobs.items()
    ]
    for line in damaged:
        adapter_jobs[0].log.note(line)
    configs = [job.config for job in adapter_jobs]
    # Dropout differs between processes; the order of the examples and initial weights do not use these generators.
    set_seed((configs[0].seed + accelerator.process_index) % 2**32)  # NumPy's seeds have 32 bits
    # Evaluations have one active adapter, so they may be packed where steps with several adapters are not.
    packs_evaluations = all(packs_examples(model, config) for config in configs)
    packs = packs_examples(model, *configs)
    loop = TrainingLoop(model, adapter_jobs, accelerator, packed=packs, folder=out, stops=stops)
    mode = training_mode(model, gradient_checkpointing=any(config.gradient_checkpointing for config in configs))
    attention = use_packed_attention(model) if packs_evaluations else nullcontext()
    with mode, attention, lean_blocks(model), loop.gradients.modes:
        try:
            if state is not None:
                loop.load_state_dict(state)
            return loop.run()
        except KeyboardInterrupt as interrupt:
            with stops_held():
                raise _interrupted(loop, adapter_jobs, accelerator, interrupt) from interrupt
        except TrainingError as error:
            others = [job for job in adapter_jobs if job not in loop.results and job is not loop.current_job]
            saved = [
                weights_location(job.save("adapter-interrupted"), f"the weights of {job.adapter}") for job in others
            ]
            raise TrainingError("; ".join([str(error), *saved])) from error
        except BaseException:
            if any(job.step for job in adapter_jobs):
                _write_checkpoint(loop)
            raise
        finally:
            accelerator.free_memory()


def _saved_state(
    out: Path | None, folders: Iterable[Path | None], note: Callable[[str], None], *, resume: bool
) -> dict[str, Any] | None:
    """Return the state to continue from; None: the training begins.

    Args:
        out: folder of the checkpoints.
        folders: folder of each job.
        note: function that receives a line about each damaged checkpoint.
        resume: see `train`.

    Raises:
        ConfigError: there is a checkpoint, and the training is not to continue from it; or the folder holds files
            that it must not replace.
    """
    if out is None:
        return None
    _check_folder(out, folders)
    if not resume and (files := checkpoint_files(out)):
        raise ConfigError(f"{files[0]} is of an unfinished training; continue it with resume=True, or delete it")
    return read_checkpoint(out, note) if resume else None


def _check_folder(out: Path, folders: Iterable[Path | None]) -> None:
    """Refuse a folder with files that the training would replace and that no training wrote, and mark the others.

    Raises:
        ConfigError: the folder holds a finished run, or such files.
    """
    if read_mark(out).get("finished"):
        raise ConfigError(f"{out} holds a finished run; train into another folder")
    if read_mark(out):
        return
    for folder in filter(None, folders):
        foreign = [name for name in ("metrics.jsonl", "adapter", "adapter-interrupted") if (folder / name).exists()]
        if foreign:
            raise ConfigError(f"{folder / foreign[0]} is not of a training; train into a new or empty folder")
    write_text(out / MARK, mark_text("a training"))


def _write_checkpoint(loop: TrainingLoop) -> None:
    """Write a checkpoint after an exception, unless it came while weights were changing."""
    # With several processes, others may have died, or be at another point of the step, unless all have agreed to stop.
    # The weights of the main process are those of a whole number of steps.
    if loop.is_consistent:
        loop.write_checkpoint(together=loop.stops_together or num_processes() == 1)


def _interrupted(
    loop: TrainingLoop, jobs: Sequence[AdapterJob], accelerator: "Accelerator", stop: KeyboardInterrupt
) -> KeyboardInterrupt:
    """Save the jobs that have not finished, and return an error that says where their weights are."""
    _write_checkpoint(loop)
    lines = [str(stop)] if isinstance(stop, Stopped) else []
    for job in jobs:
        if job in loop.results:
            continue
        try:
            saved = weights_location(job.save("adapter-interrupted"))
        except AdapterError as error:
            saved = str(error)
        lines.append(f"stopped at step {job.step} of {job.steps}; {saved}")
    if loop.stops_together:
        on_main_process(lambda: None)  # the end of another process would end the main one, which saves
    return type(stop)("; ".join(lines))
