"""Training of one adapter, or of several adapters in shared batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.adapters import attached
from peftly.data import Data, DataSource
from peftly.errors import ConfigError
from peftly.evaluation import data_of
from peftly.models import tokenizer_of
from peftly.training.callbacks import Callback, TrainResult
from peftly.training.config import TrainConfig
from peftly.training.session import Job, packs_examples, run_jobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Job", "TrainConfig", "TrainResult", "packs_examples", "train", "train_together"]


def train(
    model: "PreTrainedModel",
    data: "Data | DataSource",
    config: TrainConfig | None = None,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    learning_rate: float | None = None,
    resume: bool = False,
    delete_checkpoints: bool = True,
) -> TrainResult:
    """Train the trainable parameters of a model in place, and leave the best weights in the model.

    Example::

        model, tokenizer = peftly.load_base("smollm2-135m")
        peftly.attach(model, peftly.LoRA())
        result = peftly.train(model, rows)
        peftly.evaluate(model, tokenizer, test_rows, result.data.row_format)

    Args:
        model: adapted model. Its other parameters do not change.
        data: training examples; the validation examples decide which weights are the best. Without validation examples
            the last weights are the result. Rows are taken as `load_data` takes them by default: a list, a
            `datasets.Dataset` or `DatasetDict`, a pandas frame, a file; a tenth of the rows become validation rows if
            there are no others. `load_data` has settings for their conversion, such as a template.
        config: training settings; None: the defaults.
        tokenizer: tokenizer of the model; None: the one with which `load_base` opened it.
        out: folder for the best adapter (`adapter`), adapters saved on the way (`step-N`), `metrics.jsonl` and the
            checkpoints; None: nothing is written.
        callbacks: callbacks that receive steps, evaluations, saved adapters and notes, on the main process.
        learning_rate: learning rate if `config` sets none, in preference to the method's own.
        resume: continue from the checkpoint in `out`, if there is one. With the same number of threads, the same
            version of torch and the same CPU instructions or GPU, the adapter has the same bytes as without a stop.
        delete_checkpoints: delete the checkpoints in `out` when the training has finished and its adapter is on the
            disk. Nothing else deletes them: after an error or a stop they stay.

    Returns:
        Number of steps, best evaluation and history of the run, and the examples with their row format.

    Raises:
        ConfigError: settings that the data or the model cannot serve, a checkpoint of another run, a checkpoint of an
            unfinished training without `resume`, another process that writes into `out`, or files in `out` that the
            training would replace and that no training wrote.
        DataError: examples that are encoded for another task than the model's, or rows that cannot be read.
        TrainingError: a loss or a gradient that is not finite; the last copy of finite weights is in the model, and in
            `adapter` in `out`. The copy lacks at most a tenth of the steps, and at most 20 steps. Or memory that runs
            out with one example at once; the weights so far are there. Or a damaged checkpoint.
        KeyboardInterrupt: Ctrl-C, or SIGTERM, SIGHUP or SIGUSR1; the present weights are in the model, and in
            `adapter-interrupted` in `out`.
    """
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    if not isinstance(data, Data):
        data = data_of(model, data, tokenizer)
        for callback in callbacks:
            for line in data.report.lines():
                callback.on_note(line)
    job, folder = Job(data, config or TrainConfig(), learning_rate), None if out is None else Path(out)
    (result,) = run_jobs(
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
    results = run_jobs(
        model, jobs, tokenizer, folder, folders, callbacks or {}, resume=resume, delete_checkpoints=delete_checkpoints
    )
    return dict(zip(jobs, results, strict=True))
