"""A run from its configuration to its report: open base and data, attach, train, evaluate, write the results."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.adapters import attach, attached, parameter_counts
from peftly.data import Data, counted, read_data
from peftly.errors import ConfigError
from peftly.evaluation import Evaluation, evaluate, has_answers, missing_scores
from peftly.injection import new_modules
from peftly.methods import MethodConfig
from peftly.models import TASKS, Base, choose_task, max_tokens, resolve_base, task_of
from peftly.runs.baselines import baseline_scores
from peftly.runs.config import RunConfig
from peftly.runs.held_out import evaluation_split
from peftly.runs.launch import check_processes, processes_line
from peftly.runs.positions import max_length_of
from peftly.runs.probing import choose_head, open_with_head, start_from
from peftly.runs.progress import keeping_progress
from peftly.runs.replacing import (
    begin_run,
    check_resumable,
    check_run_folder,
    finish_run,
    writing_into,
)
from peftly.runs.results import RunResult, write_run_header, write_run_results
from peftly.runs.run_memory import estimate_before_training
from peftly.training import (
    Tracking,
    best_line,
    check_trackers,
    check_trainable,
    computed_with,
    frozen_layers,
    join_processes,
    num_epochs,
    on_main_process,
    packs_examples,
    train,
)
from peftly.utils import is_main_process, memory_of_process, parameters_text, program, stops_raised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftly.training import Callback, TrainConfig

__all__ = [
    "attach_method",
    "batches_line",
    "evaluate_held_out",
    "inputs_of",
    "open_base_and_data",
    "run",
    "tracking_of",
]

_MANY_EXAMPLES = 100_000
"""Number of examples whose tokenization takes some seconds, so that it is announced."""


def run(
    config: RunConfig,
    *,
    base: Base | None = None,
    data: Data | None = None,
    overwrite: bool = False,
    resume: bool = False,
    log: Callable[[str], None] = lambda _: None,
    callbacks: Sequence["Callback"] = (),
    estimates_memory: bool = False,
) -> RunResult:
    """Train one adapter, or several that work together, and write the run folder.

    Nothing is written before base, data and method are known to fit together. No other process can write into the
    folder meanwhile. A run that an error or a signal ends keeps its checkpoints, and `resume` continues it.

    Args:
        config: settings of the run. For an ensemble see `run_together`.
        base: base named in `config`, if it is already open, with the head of its task. It has the trained adapters
            afterwards.
        data: data named in `config`, if they are already read, encoded for the task of the base.
        overwrite: replace an earlier run in the output folder.
        resume: continue the unfinished run in the output folder, which has this configuration.
        log: function that receives each line of progress, on the main process.
        callbacks: callbacks of the training, as `train` takes them.
        estimates_memory: estimate the peak memory before the training, as `estimate_memory` does, which takes a second
            or less; a base that is already open has no estimate.

    Returns:
        Scores, sizes and paths of the run.

    Raises:
        ConfigError: the output folder cannot be used, or settings do not fit base or data.
        DataError: the data cannot be read, or not be trained on.
        BaseModelError: the base cannot be opened.
        MethodError: the method does not fit the base.
        TrainingError: the training failed; see `train`.
    """
    if config.ensemble is not None:
        raise ConfigError("run trains no ensemble; use run_together")
    out = Path(config.out)
    join_processes()
    if not is_main_process():
        log = _no_log
    check_processes(config, resume=resume)
    check_trackers(config.train.report_to)
    with stops_raised(), writing_into(out):
        check = partial(check_run_folder, out, overwrite=overwrite, inputs=inputs_of(config))
        on_main_process(partial(check_resumable, out) if resume else check)
        is_given, process_bytes = base is not None, memory_of_process()
        config, base, data = open_base_and_data(config, base, data, log)
        base, head, probe = choose_head(base, config, data, log, is_given=is_given)
        config = config.model_copy(update={"head": head})
        for name, method in config.adapters.items():
            attach_method(base, name, method, config, data, log)
        if len(config.adapters) > 1:
            log(f"methods together: {parameters_text(*parameter_counts(base.model))}")
        start_from(base, list(config.adapters), data, probe)
        check_trainable(base.model, data, config.train)
        estimate = None
        if estimates_memory and not is_given:
            estimate = estimate_before_training(config, data, process_bytes, log)
        log(batches_line(base.model, config.train))
        log(best_line(config.train, data))
        if line := processes_line(config):
            log(line)
        if config.train.frozen_layers_once and not config.train.fsdp and (frozen := len(frozen_layers(base.model))):
            log(
                f"layers: the first {frozen} have nothing to train; their outputs are cached per example where possible"
            )
        with keeping_progress(out, [out], resume=resume), tracking_of(config, log) as tracking:
            if not resume:
                on_main_process(partial(begin_run, out, partial(write_run_header, config=config, data=data)))
            training = train(
                base.model,
                data,
                config.train,
                tokenizer=base.tokenizer,
                out=out,
                callbacks=[tracking, *callbacks],
                resume=resume,
                delete_checkpoints=False,
            )
            evaluation = computed_with(base.model, partial(evaluate_held_out, base, data, config, log))
            baselines = computed_with(base.model, partial(baseline_scores, base, probe, data, config, log))
            result = write_run_results(out, data, training, evaluation, baselines, estimate)
            tracking.log_final(evaluation)
        on_main_process(partial(finish_run, out))
    return result


def tracking_of(config: RunConfig, log: Callable[[str], None], *, name: str | None = None) -> Tracking:
    """Return the trackers of a run, which get its whole configuration.

    Args:
        config: configuration of the run.
        log: function that receives lines for the user.
        name: name of the run; None: that of its folder.
    """
    settings = config.model_dump(mode="json")
    return Tracking(config.train.report_to, Path(config.out), name=name, settings=settings, note=log)


def _no_log(_line: str) -> None:
    """Take a line of a process that is not the main one."""


def inputs_of(config: RunConfig) -> list[str]:
    """Return the paths and Hub ids of the data and the base of a run."""
    return [config.base, *config.data.sources]


def evaluate_held_out(base: Base, data: Data, config: RunConfig, log: Callable[[str], None]) -> Evaluation | None:
    """Return the scores on the test split, or on the validation split; None if the data have neither.

    Args:
        base: base with the trained adapters, which are active.
        data: data of the run.
        config: settings of the run.
        log: function that receives each line of progress.
    """
    split_name, split = evaluation_split(data)
    if split is None:
        return None
    log(f"evaluating on the {split_name} split: {counted(len(split.examples), 'example')}")
    count = min(config.train.generation_examples, len(split.examples)) if has_answers(data.row_format) else 0
    if count:
        log(f"generating {counted(count, 'answer')} of the {split_name} split")
        if line := missing_scores():
            log(line)
    batch_size = config.train.evaluation_batch_size
    return evaluate(base.model, base.tokenizer, split, data.row_format, batch_size=batch_size, generate=count)


def open_base_and_data(
    config: RunConfig, base: Base | None, data: Data | None, log: Callable[[str], None]
) -> tuple[RunConfig, Base, Data]:
    """Open the base and read the data, unless they are given.

    Returns:
        The configuration with the task and the number of epochs that were chosen and with a maximum length for which
        the base has positions, the base and the data.

    Raises:
        ConfigError: the base that is given has another task than the configuration.
    """
    base_task = task_of(base.model) if base is not None else None
    if base is not None and config.task not in (None, base_task):
        raise ConfigError(f"task is {config.task}, but the given base was opened for {base_task}")
    if base is not None and data is not None:
        return _with_epochs(config.model_copy(update={"task": base_task}), base, data), base, data
    raw = read_data(config.data)
    if base is not None:
        task = base_task or "causal_lm"
        formatted = raw.format(task)
    else:
        log(f"base: {config.base}{f', linear layers in {config.quantization.kind}' if config.quantization else ''}")
        spec = resolve_base(config.base)
        task, reason = choose_task(config.task, spec.config, raw.target_kind(), config.base)
        log(f"task: {task} ({reason})")
        formatted = raw.format(task)
        labels = formatted.row_format.labels if TASKS[task].is_classification else ()
        base = open_with_head(spec, config, task, labels, config.head)
    if data is None:
        if formatted.num_examples >= _MANY_EXAMPLES:
            log(f"tokenizing {counted(formatted.num_examples, 'row')}")
        max_length = min(config.data.max_length, max_length_of(base, config))
        if max_length < config.data.max_length:
            was = config.data.max_length
            has_virtual_tokens = max_length < (max_tokens(base.model) or max_length)
            beside = " beside virtual tokens" if has_virtual_tokens else ""
            log(f"max_length is {max_length} instead of {was}: the base has no more positions{beside}")
            config = config.model_copy(update={"data": config.data.model_copy(update={"max_length": max_length})})
        data = replace(formatted, max_length=max_length).encode(base.tokenizer)
        for line in data.report.lines():
            log(line)
        if data.report.findings:
            log(f"examples of the findings: {program()} inspect {shlex.quote(config.out)}")
    resolved = _with_epochs(config.model_copy(update={"task": task}), base, data)
    if resolved.train.epochs != config.train.epochs:
        log(f"epochs: {resolved.train.epochs}")
    return resolved, base, data


def _with_epochs(config: RunConfig, base: Base, data: Data) -> RunConfig:
    """Return the configuration with the number of epochs, unless the number of steps is set."""
    if config.train.max_steps is not None:
        return config
    epochs = num_epochs(config.train, base.model, len(data.train.encoded))
    return config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})


def attach_method(
    base: Base, name: str, method: MethodConfig, config: RunConfig, data: Data, log: Callable[[str], None]
) -> None:
    """Attach one adapter of a run, and log the number of its parameters, and of those of the base with it."""
    is_first = not attached(base.model)
    before = 0 if is_first else parameter_counts(base.model)[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        attach(
            base.model,
            method,
            name=name,
            tokenizer=base.tokenizer,
            answers=data.row_format.answers,
            seed=config.train.seed,
            examples=data.train.encoded,
        )
    for warning in caught:
        log(str(warning.message))
    if (new := new_modules(base.model)) and is_first:
        log(f"new layers, saved with the adapter: {', '.join(new)}")
    prefix = "" if name == "default" else f"{name}: "
    trainable, total = parameter_counts(base.model)
    log(f"method: {prefix}{method.name}, {parameters_text(trainable - before, total - before)}")


def batches_line(model: "PreTrainedModel", *configs: "TrainConfig") -> str:
    """Return a line on how training puts examples into batches."""
    packs = packs_examples(model, *configs)
    return "batches: " + ("packed examples, without padding" if packs else "examples padded to the longest")
