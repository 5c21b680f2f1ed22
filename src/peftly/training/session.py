"""One training, from its first step or a checkpoint to its end, in a folder that no other process writes into."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import attached, tokenizer_to_save
from peftly.data import Data
from peftly.errors import AdapterError, ConfigError, PeftlyError, Stopped, TrainingError
from peftly.injection import lean_blocks, training_mode
from peftly.kernels import supports_packing, use_packed_attention
from peftly.training.callbacks import Callback, TrainResult
from peftly.training.checkpoint import checkpoint_files, read_checkpoint
from peftly.training.config import TrainConfig
from peftly.training.job import AdapterJob
from peftly.training.loop import TrainingLoop
from peftly.training.processes import num_processes, on_main_process, saved_examples_per_step
from peftly.training.saved import weights_location
from peftly.training.sharding import shard_base
from peftly.training.steps import make_accelerator
from peftly.training.trackers import check_trackers
from peftly.training.tracking import tracked
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

__all__ = ["Job", "packs_examples", "run_jobs"]


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


def packs_examples(model: "PreTrainedModel", *configs: TrainConfig) -> bool:
    """Return whether training packs the examples of a batch into one sequence without padding.

    Examples are padded where the model does not support packed attention or has no hooks of an adapter, and where
    several adapters are trained, since layers find the adapters of an example by its index in the batch.

    Args:
        model: model to train.
        configs: settings of all adapters that are trained together.
    """
    return len(configs) == 1 and configs[0].packing and bool(attached(model)) and supports_packing(model)


def run_jobs(
    model: "PreTrainedModel",
    jobs: Mapping[Any, Job],
    tokenizer: "PreTrainedTokenizerBase",
    out: Path | None,
    folders: Mapping[Any, Path | None],
    callbacks: Mapping[Any, Sequence[Callback]],
    *,
    resume: bool,
    delete_checkpoints: bool,
    make_job: Callable[..., AdapterJob] = AdapterJob,
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
        make_job: `AdapterJob`, or a function that makes another kind of job from its arguments.
    """
    for job in jobs.values():
        check_trackers(job.config.report_to, together=len(jobs) > 1)
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
    with lock, stops_raised(), stops as numbers, ExitStack() as trackers:
        callbacks = {
            name: trackers.enter_context(tracked(callbacks.get(name, ()), job.config, folders[name], name=name))
            for name, job in jobs.items()
        }
        results = _train_in(
            model, jobs, tokenizer, accelerator, out, folders, callbacks, numbers, make_job, resume=resume
        )
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
    make_job: Callable[..., AdapterJob],
    *,
    resume: bool,
) -> list[TrainResult]:
    """Train all jobs in a folder that no other process writes into; see `run_jobs`."""
    from accelerate.utils import set_seed

    if any(job.config.fsdp for job in jobs.values()) and accelerator.num_processes > 1:
        shard_base(model, accelerator.device)
    damaged: list[str] = []
    saves = out is not None and accelerator.is_main_process
    own_tokenizer = tokenizer_to_save(model, tokenizer) if saves else None
    state = on_main_process(partial(_saved_state, out, tuple(folders.values()), damaged.append, resume=resume))
    adapter_jobs = [
        make_job(
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
            own_tokenizer=own_tokenizer,
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
                _load_state(loop, state)
            return loop.run()
        except KeyboardInterrupt as interrupt:
            with stops_held():
                raise _interrupted(loop, adapter_jobs, accelerator, interrupt) from interrupt
        except TrainingError as error:
            others = [job for job in adapter_jobs if job not in loop.results and job is not loop.current_job]
            saved = [
                weights_location(job.saved.save("adapter-interrupted"), f"the weights of {job.adapter}")
                for job in others
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


def _load_state(loop: TrainingLoop, state: Mapping[str, Any]) -> None:
    """Continue from a checkpoint, as `TrainingLoop.load_state_dict` does.

    Raises:
        ConfigError: the checkpoint is of another run, or parts of it are missing or senseless.
    """
    try:
        loop.load_state_dict(state)
    except PeftlyError:
        raise
    except Exception as error:  # a checkpoint may hold anything, and its parts are loaded by torch and numpy
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ConfigError(f"the checkpoint in {loop.folder} is damaged ({reason:.200}); delete it") from error


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
            saved = weights_location(job.saved.save("adapter-interrupted"))
        except AdapterError as error:
            saved = str(error)
        lines.append(f"stopped at step {job.step} of {job.steps}; {saved}")
    if loop.stops_together:
        on_main_process(lambda: None)  # the end of another process would end the main one, which saves
    return type(stop)("; ".join(lines))
