"""Classifiers whose outputs are numbers (reward models), or labels of which any number may be right."""

import pytest
import torch
from tiny_tasks import opened
from typer.testing import CliRunner

from peftly import LoRA, attach, classify, evaluate, load, load_base, save_adapter
from peftly.cli import app
from peftly.data import DataConfig, load_data
from peftly.errors import DataError
from peftly.models import output_kind

TEXTS = ["late again", "thanks for the help, great service"]
MULTI_LABEL = "multi_label_classification"
pytestmark = pytest.mark.filterwarnings("ignore:.*has no weights for")


def classifier(folder, labels, problem_type=None):
    model, tokenizer = opened(folder, task="sequence_classification", labels=labels)
    model.config.problem_type = problem_type
    return model, tokenizer


def logits_of(model, tokenizer):
    with torch.no_grad():
        return [model(**tokenizer([text], return_tensors="pt")).logits[0] for text in TEXTS]


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize(
    ("labels", "problem_type", "kind", "scores_of"),
    [
        (["score"], None, "numbers", torch.clone),
        (["mild", "warm"], "regression", "numbers", torch.clone),
        (["rude", "late"], MULTI_LABEL, "labels", torch.sigmoid),
        (["rude"], MULTI_LABEL, "labels", torch.sigmoid),
        (["rude", "late"], "single_label_classification", "class", lambda logits: logits.softmax(-1)),
        (["rude", "late"], None, "class", lambda logits: logits.softmax(-1)),
    ],
)
def test_scores_by_the_meaning_of_the_outputs(architecture, labels, problem_type, kind, scores_of, task_base):
    model, tokenizer = classifier(task_base(architecture), labels, problem_type)
    assert output_kind(model.config) == kind
    for found, logits in zip(classify(model, tokenizer, TEXTS), logits_of(model, tokenizer), strict=True):
        assert found == pytest.approx(dict(zip(labels, scores_of(logits).tolist(), strict=True)), rel=1e-9)


def test_an_adapter_keeps_the_meaning_of_the_outputs(task_base, tmp_path):
    base = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=["rude", "late"])
    base.model.config.problem_type = MULTI_LABEL
    attach(base.model, LoRA(rank=2))
    save_adapter(base.model, tmp_path)
    again = load(tmp_path, dtype="float32")
    assert again.model.config.problem_type == MULTI_LABEL
    assert classify(*again, TEXTS) == classify(*base, TEXTS)
    assert "any number may be right" in (tmp_path / "README.md").read_text()
    other = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=["a", "b"])
    assert output_kind(other.model.config) == "class", "a new head has labels of its own"


def test_the_command_line_prints_the_number(task_base, tmp_path):
    """It printed LABEL_0 and 100.0%."""
    base = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=["reward"])
    save_adapter(attach(base.model, LoRA(rank=2)), tmp_path)
    score = classify(*base, TEXTS[:1])[0]["reward"]
    result = CliRunner().invoke(app, ["generate", str(tmp_path), "--text", TEXTS[0]])
    label, printed = result.stdout.split()
    assert label == "reward"
    assert float(printed) == pytest.approx(score, rel=0.02), "the command opens the base in bf16"
    assert "Numbers that it predicts" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("labels", "problem_type", "named"),
    [(["rude", "late"], MULTI_LABEL, "any number of labels"), (["rude", "late"], "regression", "numbers")],
)
def test_rows_of_one_label_do_not_train_or_score_it(labels, problem_type, named, task_base, tmp_path):
    """They did, with the loss and the probabilities of a model of one label."""
    model, tokenizer = classifier(task_base("bert"), labels, problem_type)
    (tmp_path / "rows.csv").write_text("text,label\nlate again,late\nnobody answers,rude\n" * 4)
    config = DataConfig(train=str(tmp_path / "rows.csv"))
    data = load_data(config, tokenizer, task="sequence_classification")
    with pytest.raises(DataError, match=f"the model predicts {named} for a text"):
        evaluate(model, tokenizer, data.train, data.row_format)
