"""A run from its configuration to its report: load, attach, train, evaluate, save."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import attach, attached, trainable_parameters
from peftly.data import Data, RowFormat, Split, read_data
from peftly.errors import ConfigError, PeftlyError, TrainingError
from peftly.evaluation import Evaluation, evaluate
from peftly.inference import generate
from peftly.injection import new_parts
from peftly.methods import MethodConfig
from peftly.models import TASKS, Base, base_config, choose_task, load_base, task_of
from peftly.report import comparison_row, write_report
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config
from peftly.runs.folder import (
    adapter_folders,
    check_out,
    clear_run,
    drop_leftovers,
    folder_bytes,
    replacing,
    resume_command,
    write_json,
    write_text,
)
from peftly.runs.held_out import evaluation_split
from peftly.training import CHECKPOINT, TrainResult, check_trainable, frozen_layers, lays_end_to_end, train
from peftly.utils import environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftly.training import Callback, TrainConfig

__all__ = ["RunResult", "run"]

SAMPLES = 12
WRITTEN_SAMPLES = 4  # without labels a sample has to be generated, which takes seconds


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        out: the run folder.
        training: what the loop says: durations, the best evaluation.
        split: which rows `evaluation` is about, `test` or `validation`.
        evaluation: their scores; None if there are no such rows.
        parameters: how many numbers were trained.
        size: bytes of the adapter on disk.
        report: the page that shows all of it.
    """

    out: Path
    training: TrainResult
    split: str
    evaluation: Evaluation | None
    parameters: int
    size: int
    report: Path

    def comparison_row(self, name: str) -> dict[str, Any]:
        """Return the row of this run in a comparison of several runs, as plain JSON values."""
        return comparison_row(
            name,
            self.evaluation,
            folder=self.out.name,
            parameters=self.parameters,
            size=self.size,
            seconds=self.training.seconds,
        )


def run(
    config: RunConfig,
    *,
    base: Base | None = None,
    data: Data | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    callbacks: Sequence["Callback"] = (),
) -> RunResult:
    """Do what `config` says and write the run folder.

    Nothing is written before the base, the data and the method are known to fit together.

    Args:
        config: what to do; for an ensemble see `run_together`.
        base: the base that `config` names, if it is loaded already, with the head of its task; it carries the trained
            adapters afterwards.
        data: the data that `config` names, if they are loaded already, for that task.
        overwrite: replace the run that the out folder holds.
        resume: go on with the run that the out folder holds, which has this configuration.
        say: takes one line about what is happening.
        callbacks: passed to `train`.
    """
    if config.ensemble is not None:
        raise ConfigError("an ensemble is trained by run_together")
    out = Path(config.out)
    check_out(out, overwrite=overwrite, resume=resume)
    config, base, data = open_parts(config, base, data, say)
    for name, method in config.adapters.items():
        attach_method(base, name, method, config, data, say)
    check_trainable(base.model, data, config.train)
    say(batches_line(base.model, config.train))
    if config.train.frozen_layers_once and (frozen := len(frozen_layers(base.model))):
        say(
            f"layers: the first {frozen} are below all training; what they make of an example is kept where that can be"
        )
    with training_in(out, [out], resume=resume):
        write_run_header(config, data, resume=resume)
        training = train(
            base.model, data, config.train, tokenizer=base.tokenizer, out=out, callbacks=callbacks, resume=resume
        )
    split_name, split = evaluation_split(data)
    evaluation = None
    if split is not None:
        say(f"evaluating on the {split_name} split: {len(split.examples)} rows")
        size = config.train.evaluation_batch_size
        evaluation = evaluate(base.model, base.tokenizer, split, data.row_format, batch_size=size)
    result = write_run_results(out, base, data, training, evaluation)
    drop_leftovers(out)
    return result


def attach_method(
    base: Base, name: str, method: MethodConfig, config: RunConfig, data: Data, say: Callable[[str], None]
) -> None:
    """Attach one adapter of a run, and say how much of it is trained."""
    is_first = not attached(base.model)
    before = 0 if is_first else count_trainable(base.model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        attach(
            base.model,
            method,
            name=name,
            tokenizer=base.tokenizer,
            labels=data.row_format.answers,
            seed=config.train.seed,
            rows=data.train.encoded,
        )
    for warning in found:
        say(str(warning.message))
    if (new := new_parts(base.model)) and is_first:
        say(f"new in this base, from random numbers, and kept with the adapter: {', '.join(new)}")
    called = "" if name == "default" else f"{name}: "
    say(f"method: {called}{method.name}, {count_trainable(base.model) - before:,} trained parameters")


def count_trainable(model: Any) -> int:
    """Return how many numbers of a model are trained."""
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def batches_line(model: "PreTrainedModel", *configs: "TrainConfig") -> str:
    """Return what a person should know of the batches of training by these settings."""
    packs = lays_end_to_end(model, *configs)
    return "batches: " + ("examples laid end to end" if packs else "examples padded to the longest")


def write_run_header(config: RunConfig, data: Data, *, resume: bool = False) -> None:
    """Write the first files of a run folder; to `resume` a run, those that it had not come to."""
    out = Path(config.out)
    if resume and (out / "data.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", dump_config(config))
    write_json(
        out / "data.json",
        {**data.report.to_dict(), "lines": data.report.lines(), "row_format": data.row_format.to_dict()},
    )


@contextmanager
def training_in(out: Path, runs: Sequence[Path], *, resume: bool) -> Iterator[None]:
    """Around a training that writes `runs`, all of them in `out`: what becomes of the folders if it does not end well.

    A run that has an adapter gets its page; one that has none leaves no trace, and what it was to replace comes back.
    To `resume`, there is nothing to be replaced, and nothing is deleted.
    """
    with nullcontext() if resume else replacing(out):
        try:
            yield
        except PeftlyError as error:
            for run_folder in runs:
                if not adapter_folders(run_folder):
                    if not resume:
                        clear_run(run_folder)
                elif not resume or isinstance(error, TrainingError):  # others are refusals, which change nothing
                    write_report(run_folder)
            raise
        except KeyboardInterrupt as stop:
            if not (out / CHECKPOINT).is_file():
                raise
            raise KeyboardInterrupt(f"{stop}; go on with: {resume_command(out)}") from stop


def write_run_results(
    out: Path, base: Base, data: Data, training: TrainResult, evaluation: Evaluation | None
) -> RunResult:
    """Write the last files of a run folder, with the adapters of the run on.

    Args:
        out: the folder.
        base: with the trained adapters.
        data: that they learned.
        training: how that went.
        evaluation: of the held-out rows, if there are any.
    """
    split_name, split = evaluation_split(data)
    if split is not None and evaluation is not None:
        write_json(out / "evaluation.json", _evaluation_dict(base, data.row_format, split_name, split, evaluation))
    parameters, size = training.trained_parameters, folder_bytes(out / "adapter")
    summary = {"parameters": parameters, "bytes": size, "seconds": training.seconds}
    summary |= {"steps": training.steps, "best_step": training.best_step}
    write_json(out / "summary.json", {**summary, "environment": environment()})
    report = write_report(out)
    return RunResult(out, training, split_name, evaluation, parameters, size, report)


def open_parts(
    config: RunConfig, base: Base | None, data: Data | None, say: Callable[[str], None]
) -> tuple[RunConfig, Base, Data]:
    """Open what `run` was not given, with the task decided in the configuration that is returned."""
    own = task_of(base.model) if base is not None else None
    if base is not None and config.task not in (None, own):
        raise ConfigError(f"task {config.task} is asked for, and the base that was given is opened for {own}")
    if base is not None and data is not None:
        return config.model_copy(update={"task": own}), base, data
    raw = read_data(config.data)
    if base is not None:
        task = own or "causal_lm"
        shaped = raw.shaped(task)
    else:
        say(f"base: {config.base}{f', linear layers in {config.quantization.kind}' if config.quantization else ''}")
        task, reason = choose_task(config.task, base_config(config.base), raw.holds(), config.base)
        say(f"task: {task} ({reason})")
        shaped = raw.shaped(task)
        labels = shaped.row_format.labels if TASKS[task].is_classification else ()
        base = load_base(
            config.base,
            dtype=config.dtype,
            device=config.device,
            device_map=config.device_map,
            quantization=config.quantization,
            task=task,
            labels=labels,
            seed=config.train.seed,
        )
    if data is None:
        data = shaped.encoded(base.tokenizer)
        for line in data.report.lines():
            say(line)
    return config.model_copy(update={"task": task}), base, data


def _evaluation_dict(
    base: Base, row_format: RowFormat, name: str, split: Split, evaluation: Evaluation
) -> dict[str, Any]:
    """Return an evaluation as plain JSON values, with samples for people to look at."""
    return {"split": name, **asdict(evaluation), "samples": _samples(base, row_format, split, evaluation)}


def _samples(base: Base, row_format: RowFormat, split: Split, evaluation: Evaluation) -> list[dict[str, str]]:
    if evaluation.predictions:
        return [
            {"text": row.prompt, "gold": row.label, "predicted": row.predicted}
            for row in _wrong_and_right(evaluation)[:SAMPLES]
        ]
    if row_format.kind == "text":
        return []
    examples = split.examples[:WRITTEN_SAMPLES]
    golds = [str(row.messages[-1]["content"]) if row.messages else row.completion for row in examples]
    texts = [row.messages[-2]["content"] if row.messages else row.prompt for row in examples]
    written = generate(
        base.model, base.tokenizer, [list(row.messages[:-1]) or row for row in examples], max_new_tokens=64
    )
    return [
        {"text": text, "gold": gold.strip(), "predicted": words.strip()}
        for text, gold, words in zip(texts, golds, written, strict=True)
    ]


def _wrong_and_right(evaluation: Evaluation) -> list[Any]:
    """Return the predictions with up to a third of mistakes first, so that a sample shows what goes wrong too."""
    wrong = [row for row in evaluation.predictions if row.predicted != row.label]
    right = [row for row in evaluation.predictions if row.predicted == row.label]
    return wrong[: SAMPLES // 3] + right
