"""The result of a run, and the files of a run folder that are written before and after the training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftly.data import Data, RowFormat, Split
from peftly.evaluation import Evaluation
from peftly.inference import generate
from peftly.models import Base
from peftly.report import comparison_row, write_report
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config
from peftly.runs.held_out import evaluation_split
from peftly.runs.replacing import write_mark
from peftly.training import TrainResult, computed_with, on_main_process
from peftly.utils import environment, folder_bytes, write_json, write_text

__all__ = ["RunResult", "write_run_header", "write_run_results"]

_SAMPLES = 12
_GENERATED_SAMPLES = 4  # data without labels need generation, which takes seconds


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        out: run folder.
        training: result of the training loop: duration, best evaluation.
        split: name of the split of `evaluation`: `test` or `validation`.
        evaluation: scores on that split; None if the data have no such split.
        parameters: number of trained parameters.
        size: size of the saved adapter in bytes.
        report: path of the HTML report.
    """

    out: Path
    training: TrainResult
    split: str
    evaluation: Evaluation | None
    parameters: int
    size: int
    report: Path

    def comparison_row(self, name: str) -> dict[str, Any]:
        """Return the row of this run in a comparison of several runs, as JSON values.

        Args:
            name: name of the row.
        """
        return comparison_row(
            name,
            self.evaluation,
            folder=self.out.name,
            parameters=self.parameters,
            size=self.size,
            seconds=self.training.seconds,
        )


def write_run_header(folder: Path, config: RunConfig, data: Data) -> None:
    """Write the first files of a run: mark, configuration and data report.

    Args:
        folder: folder without these files; it is created.
        config: configuration of the run.
        data: data of the run.
    """
    write_mark(folder, is_finished=False)
    write_text(folder / "config.yaml", dump_config(config))
    _write_data_report(folder, data)


def _write_data_report(folder: Path, data: Data) -> None:
    write_json(
        folder / "data.json",
        {
            **data.report.to_dict(),
            "lines": [*data.report.counts(), *data.report.notes],
            "row_format": data.row_format.to_dict(),
        },
    )


def write_run_results(
    out: Path, base: Base, data: Data, training: TrainResult, evaluation: Evaluation | None
) -> RunResult:
    """Write the last files of a run folder, on the main process: evaluation, summary and report.

    Args:
        out: run folder.
        base: base with the trained adapters, which are active.
        data: data of the run.
        training: result of the training.
        evaluation: scores on the held-out examples; None if there are none.
    """
    split_name, split = evaluation_split(data)
    samples = []
    if split is not None and evaluation is not None:
        samples = computed_with(base.model, partial(_samples, base, data.row_format, split, evaluation))
    return on_main_process(partial(_write_results, out, data, split_name, training, evaluation, samples))


def _write_results(
    out: Path,
    data: Data,
    split_name: str,
    training: TrainResult,
    evaluation: Evaluation | None,
    samples: list[dict[str, str]],
) -> RunResult:
    _write_data_report(out, data)  # again: a disk may have damaged the file of a run that was continued
    if evaluation is not None:
        write_json(out / "evaluation.json", {"split": split_name, **asdict(evaluation), "samples": samples})
    parameters, size = training.trained_parameters, folder_bytes(out / "adapter")
    summary = {"parameters": parameters, "bytes": size, "seconds": training.seconds}
    summary |= {"steps": training.steps, "best_step": training.best_step}
    write_json(out / "summary.json", {**summary, "environment": environment()})
    report = write_report(out)
    return RunResult(out, training, split_name, evaluation, parameters, size, report)


def _samples(base: Base, row_format: RowFormat, split: Split, evaluation: Evaluation) -> list[dict[str, str]]:
    """Return texts with their expected and predicted answers, for the report."""
    if evaluation.predictions:
        return [
            {"text": prediction.prompt, "gold": prediction.label, "predicted": prediction.predicted}
            for prediction in _mistakes_first(evaluation.predictions)[:_SAMPLES]
        ]
    if row_format.kind == "text":
        return []
    examples = split.examples[:_GENERATED_SAMPLES]
    golds = [str(example.messages[-1]["content"]) if example.messages else example.completion for example in examples]
    texts = [example.messages[-2]["content"] if example.messages else example.prompt for example in examples]
    prompts = [list(example.messages[:-1]) or example for example in examples]
    completions = generate(base.model, base.tokenizer, prompts, max_new_tokens=64)
    return [
        {"text": text, "gold": gold.strip(), "predicted": completion.strip()}
        for text, gold, completion in zip(texts, golds, completions, strict=True)
    ]


def _mistakes_first(predictions: Sequence[Any]) -> list[Any]:
    """Return a third of a sample's size of wrong predictions, then all right ones."""
    wrong = [prediction for prediction in predictions if prediction.predicted != prediction.label]
    right = [prediction for prediction in predictions if prediction.predicted == prediction.label]
    return wrong[: _SAMPLES // 3] + right
