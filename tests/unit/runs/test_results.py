"""The last files of a run: summary, samples and report."""

import json
from pathlib import Path

import pytest

from peftly.data import load_data
from peftly.evaluation.metrics import Evaluation, Prediction
from peftly.runs.results import write_run_results
from peftly.training import StepRecord, TrainResult
from peftly.training.callbacks import EvaluationRecord

PLANNED = 40


def trained(steps: int, best: int, *, stopped_early: bool) -> TrainResult:
    """A training with an evaluation at every fifth step."""
    history: list = []
    for step in range(1, steps + 1):
        history.append(StepRecord(step, PLANNED, step / 10, 1.0, 0.1, 1.0, 10, 5, 100.0, 1.0))
        if step % 5 == 0:
            history.append(EvaluationRecord(step, step / 10, 1.0, 2.7, 0.5, None, None, step == best, 1.0))
    record = next(entry for entry in history if isinstance(entry, EvaluationRecord) and entry.best)
    return TrainResult(steps, best, record, tuple(history), 1.0, stopped_early, "loss", 0.1, 10, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text("base: b\nmethod: {name: lora}\n")
    return tmp_path


@pytest.fixture
def data(tiny_llama_folder):
    from peftly.models import load_tokenizer, resolve_base

    rows = [{"prompt": f"say {number}", "completion": "so"} for number in range(4)]
    return load_data(rows, load_tokenizer(resolve_base(str(tiny_llama_folder))))


def test_an_early_stop_is_said(folder, data):
    write_run_results(folder, data, trained(25, 10, stopped_early=True), None, {})
    summary = json.loads((folder / "summary.json").read_text())
    assert [summary[key] for key in ("steps", "planned_steps", "best_step", "stopped_early")] == [25, 40, 10, True]
    assert "best after step 10 of 25, stopped early of 40 planned" in (folder / "report.html").read_text()


def test_a_whole_training_did_not_stop_early(folder, data):
    write_run_results(folder, data, trained(PLANNED, 40, stopped_early=False), None, {})
    summary = json.loads((folder / "summary.json").read_text())
    assert [summary[key] for key in ("steps", "planned_steps", "stopped_early")] == [40, 40, False]
    assert "stopped early" not in (folder / "report.html").read_text()


def test_samples_of_generated_answers_are_in_order(folder, data):
    answers = tuple(Prediction(f"ask {n}", "yes", "yes" if n % 2 else "no", {}) for n in range(16))
    scores = Evaluation(rows=16, tokens=16, loss=1.0, predictions=answers, generated=16)
    write_run_results(folder, data, trained(PLANNED, 40, stopped_early=False), scores, {})
    samples = json.loads((folder / "evaluation.json").read_text())["samples"]
    assert [sample["text"] for sample in samples] == [f"ask {n}" for n in range(12)]
    assert samples[0] == {"text": "ask 0", "gold": "yes", "predicted": "no"}
