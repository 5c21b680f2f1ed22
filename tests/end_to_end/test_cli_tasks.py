"""Every task from data to answers on the command line, and errors in one line.

A classifier, whose head is saved with it, is trained in another process than the one that opens it.
"""

import json
import re

import pytest
from commands import peftly_apart
from tiny_tasks import answer_rows, labelled_rows, pair_rows, tagged_rows, write_rows

SETTINGS = ("--epochs", 12, "--learning-rate", 0.02, "--set", "dtype=float32")


@pytest.fixture(params=[False])
def done(request, peftly):
    """Run a command that must succeed and return its output; `train` in another process if a test asks for it."""

    def run(*arguments):
        apart = request.param and arguments[0] == "train"
        outcome = (peftly_apart if apart else peftly)(*arguments)
        assert outcome.code == 0, outcome
        assert outcome.err == "", outcome.err
        return outcome.out

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task-rows")
    kinds = {"labels": labelled_rows, "pairs": pair_rows, "tags": tagged_rows, "answers": answer_rows}
    return {name: write_rows(folder / f"{name}.jsonl", rows()) for name, rows in kinds.items()}


def scores_of(run, done):
    scores = json.loads(done("evaluate", run, "--json"))
    stored = json.loads((run / "evaluation.json").read_text())
    assert scores["loss"] == pytest.approx(stored["loss"], rel=1e-5), "what was saved is what was trained"
    return scores


def report_of(run):
    return re.sub(r"<svg.*?</svg>", "", (run / "report.html").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(
    ("architecture", "options", "done"),
    [("bert", (), True), ("distilbert", (), False), ("llama", ("--task", "sequence_classification"), False)],
    indirect=["done"],
)
def test_sequence_classification(architecture, options, done, peftly, task_base, files, tmp_path):
    run = tmp_path / "run"
    base = task_base(architecture)
    out = done(
        "train", "--base", base, "--data", files["labels"], "--method", "lora", "--out", run, *options, *SETTINGS
    )
    assert f"task: sequence_classification ({'as asked' if options else base}" in out
    assert re.search(r"new layers, saved with the adapter: .*(classifier|score|pooled_head)", out)
    assert re.search(r"validation: loss [\d.e-]+, accuracy 100.0%, macro-F1 100.0%", out)
    scores = scores_of(run, done)
    assert (scores["accuracy"], scores["labels"]) == (1.0, ["complaint", "no complaint"])
    shown = peftly("evaluate", run).out
    assert "accuracy" in shown
    assert "perplexity" not in shown
    assert "token accuracy" not in shown
    others = json.loads(peftly("evaluate", run, "--data", files["labels"], "--json").out)
    assert (others["rows"], others["accuracy"]) == (40, 1.0)
    lines = done("generate", run, "--text", "never arrived again").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["complaint", "no complaint"]
    assert sum(float(line.split("\t")[1].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.2)
    assert re.search(r"→ ⟦(no )?complaint⟧", done("inspect", run, "--examples", "1"))
    assert "task: sequence_classification" in (run / "config.yaml").read_text()
    page = report_of(run)
    assert "macro-F1" in page
    assert "perplexity" not in page


def test_two_texts(done, peftly, task_base, files, tmp_path):
    run = tmp_path / "run"
    options = ("--method", "bitfit", "--out", run, "--epochs", 1)
    out = done("train", "--base", task_base("bert"), "--data", files["pairs"], *options)
    assert "read as two texts and a label (premise + hypothesis + label)" in out
    said = [done("generate", run, "--text", "late", "--pair", pair) for pair in ("late", "great")]
    assert said[0] != said[1]
    alone = peftly("generate", run, "--text", "late")
    assert (alone.code, len(alone.err.splitlines())) == (2, 1)
    assert """and the second text 'hypothesis'; give --text "…" --pair "…\"""" in alone.err


def test_token_classification(done, peftly, task_base, files, tmp_path):
    run = tmp_path / "run"
    out = done(
        "train", "--base", task_base("roberta"), "--data", files["tags"], "--method", "lora", "--out", run, *SETTINGS
    )
    assert "task: token_classification (" in out
    assert "304 tags (B-LOC: 65, B-PER: 65, I-PER: 44, O: 130)" in out
    scores = scores_of(run, done)
    assert scores["entity_f1"] > 0.9
    assert scores["token_accuracy"] > 0.9
    assert "entity F1" in peftly("evaluate", run).out
    lines = done("generate", run, "--text", "Bob Smith was in Paris").splitlines()
    assert lines == ["Bob\tB-PER", "Smith\tI-PER", "was\tO", "in\tO", "Paris\tB-LOC"]
    assert "/B-PER⟧" in done("inspect", run, "--examples", "1")
    assert "entity F1" in report_of(run)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(record.get("entity_f1") or 0 for record in metrics) > 0.9


@pytest.mark.parametrize("rows", ["answers", "labels"])
def test_sequence_to_sequence(rows, done, task_base, files, tmp_path):
    run = tmp_path / "run"
    out = done("train", "--base", task_base("t5"), "--data", files[rows], "--method", "lora", "--out", run, *SETTINGS)
    assert "task: seq2seq_lm (" in out
    scores = scores_of(run, done)
    assert scores["perplexity"] < 5
    if rows == "labels":
        assert scores["accuracy"] == 1.0
    text = {"answers": "say again great", "labels": "never arrived 3"}[rows]
    assert done("generate", run, "--text", text).strip() == {"answers": "great", "labels": "complaint"}[rows]
    assert re.search(r"</s> → ⟦.*│</s>⟧", done("inspect", run, "--examples", "1"))
    assert "perplexity" in report_of(run)


@pytest.mark.parametrize(
    ("architecture", "rows", "options", "words"),
    [
        ("bert", "labels", ("--task", "causal_lm"), ["task causal_lm", "encoder (bert)", "sequence_classification"]),
        ("bert", "labels", ("--task", "token_classification"), ["needs rows with tags", "sequence_classification"]),
        ("bert", "answers", (), ["encoder (bert)", "labels (text + label)"]),
        ("t5", "tags", (), ["encoder-decoder (t5)", "hold tags"]),
        ("llama", "tags", (), ["--task token_classification"]),
        ("bert", "labels", ("--task", "classification"), ["task", "sequence_classification", "'classification'"]),
        (
            "bert",
            "tags",
            ("--set", "train.metric_for_best_model=accuracy"),
            ["train.metric_for_best_model accuracy", "entity_f1"],
        ),
        ("bert", "tags", ("--template", "{tokens}", "--target", "tags"), ["leave it out"]),
    ],
)
def test_mistakes(architecture, rows, options, words, peftly, task_base, files, tmp_path):
    arguments = ("--base", task_base(architecture), "--data", files[rows], "--method", "lora")
    outcome = peftly("train", *arguments, "--out", tmp_path / "out", *options)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome
    assert outcome.err.startswith("error: ")
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "out").exists()
