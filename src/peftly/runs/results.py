"""The result of a run, and the files of a run folder that are written before and after the training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftly.data import Data, RowFormat
from peftly.evaluation import Evaluation, Prediction
from peftly.report import comparison_row, write_report
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config
from peftly.runs.data_file import write_data_file
from peftly.runs.held_out import evaluation_split
from peftly.runs.memory import MemoryEstimate
from peftly.runs.replacing import write_mark
from peftly.training import TrainResult, on_main_process
from peftly.utils import environment, folder_bytes, write_json, write_text

__all__ = ["RunResult", "baseline_rows", "write_run_header", "write_run_results"]

_SAMPLES = 12


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        out: run folder.
        training: result of the training loop: duration, best evaluation.
        split: name of the split of `evaluation`: `test` or `validation`.
        evaluation: scores on that split; None if the data have no such split.
        baselines: scores on that split without the adapter, by name; see `baseline_scores`.
        parameters: number of trained parameters.
        size: size of the saved adapter in bytes.
        report: path of the HTML report.
        row_format: format of the rows.
        estimate: memory that was estimated before the training; None: there was no estimate.
    """

    out: Path
    training: TrainResult
    split: str
    evaluation: Evaluation | None
    baselines: Mapping[str, Evaluation]
    parameters: int
    size: int
    report: Path
    row_format: RowFormat
    estimate: MemoryEstimate | None = None

    def comparable_baselines(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of the baselines, by name and field, that can be compared with those of the adapter."""
        return _comparable(self.baselines, self.evaluation)

    def comparison_row(self, name: str) -> dict[str, Any]:
        """Return the row of this run in a comparison of several runs, as JSON values.

        Args:
            name: name of the row.
        """
        return comparison_row(
            name,
            self.evaluation,
            split=self.split,
            folder=self.out.name,
            parameters=self.parameters,
            size=self.size,
            seconds=self.training.seconds,
        )


def baseline_rows(runs: Mapping[str, RunResult]) -> list[dict[str, Any]]:
    """Return the rows of the baselines in a comparison. Runs with different baselines have rows of their own.

    Args:
        runs: results by the name of the run.
    """
    if all(run.baselines is next(iter(runs.values())).baselines for run in runs.values()):
        runs = {"": next(iter(runs.values()))}
    return [
        comparison_row(f"{name}: {baseline}" if name else baseline, scores)
        | {"loss": run.comparable_baselines()[baseline].get("loss")}
        for name, run in runs.items()
        for baseline, scores in run.baselines.items()
    ]


def write_run_header(folder: Path, config: RunConfig, data: Data) -> None:
    """Write the first files of a run: mark, configuration and data report.

    Args:
        folder: folder without these files; it is created.
        config: configuration of the run.
        data: data of the run.
    """
    write_mark(folder, is_finished=False)
    write_text(folder / "config.yaml", dump_config(config))
    write_data_file(folder, data)


def write_run_results(
    out: Path,
    data: Data,
    training: TrainResult,
    evaluation: Evaluation | None,
    baselines: Mapping[str, Evaluation],
    estimate: MemoryEstimate | None = None,
) -> RunResult:
    """Write the last files of a run folder, on the main process: evaluation, summary and report.

    Args:
        out: run folder.
        data: data of the run.
        training: result of the training.
        evaluation: scores on the held-out examples; None if there are none.
        baselines: scores on the same examples without the adapter, by name.
        estimate: memory that was estimated before the training.
    """
    split_name, _ = evaluation_split(data)
    return on_main_process(partial(_write_results, out, data, split_name, training, evaluation, baselines, estimate))


def _write_results(
    out: Path,
    data: Data,
    split_name: str,
    training: TrainResult,
    evaluation: Evaluation | None,
    baselines: Mapping[str, Evaluation],
    estimate: MemoryEstimate | None,
) -> RunResult:
    write_data_file(out, data)  # again: a disk may have damaged the file of a run that was continued
    if evaluation is not None:
        scores = {"split": split_name, **asdict(evaluation), "samples": _samples(evaluation)}
        scores["baselines"] = _comparable(baselines, evaluation)
        write_json(out / "evaluation.json", scores)
    parameters, size = training.trained_parameters, folder_bytes(out / "adapter")
    summary: dict[str, Any] = {"parameters": parameters, "bytes": size, "seconds": training.seconds}
    summary |= {"steps": training.steps, "planned_steps": training.planned_steps, "best_step": training.best_step}
    summary |= {"stopped_early": training.stopped_early, "stop_reason": training.stop_reason}
    summary |= {"metric_for_best_model": training.metric_for_best_model}
    summary["peak_memory_bytes"] = training.peak_memory_bytes
    summary["estimated_memory_bytes"] = estimate and estimate.steps_bytes
    write_json(out / "summary.json", {**summary, "environment": environment()})
    report = write_report(out)
    return RunResult(
        out, training, split_name, evaluation, baselines, parameters, size, report, data.row_format, estimate
    )


def _comparable(baselines: Mapping[str, Evaluation], evaluation: Evaluation | None) -> dict[str, dict[str, Any]]:
    """Return the numbers of baselines that can be compared with an evaluation, without labels and predictions.

    The loss of a probe of a language model is one over labels, and that of the model one over their tokens.
    """
    names = ["rows", "token_accuracy", "accuracy", "macro_f1", "entity_f1"]
    comparable = {}
    for baseline, scores in baselines.items():
        has_same_targets = evaluation is not None and (scores.perplexity is None) == (evaluation.perplexity is None)
        fields = [*names, *(["tokens", "loss", "perplexity"] if has_same_targets else [])]
        comparable[baseline] = {field: value for field in fields if (value := getattr(scores, field)) is not None}
    return comparable


def _samples(evaluation: Evaluation) -> list[dict[str, str]]:
    """Return texts with their expected and predicted answers, for the report."""
    predictions = evaluation.predictions
    return [
        {"text": prediction.prompt, "gold": prediction.label, "predicted": prediction.predicted}
        for prediction in (predictions if evaluation.generated else _mistakes_first(predictions))[:_SAMPLES]
    ]


def _mistakes_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return a third of a sample's size of wrong predictions, then all right ones."""
    wrong = [prediction for prediction in predictions if prediction.predicted != prediction.label]
    right = [prediction for prediction in predictions if prediction.predicted == prediction.label]
    return wrong[: _SAMPLES // 3] + right
