"""Scores of the untouched base and of its linear probe beside those of an adapter."""

import json

import pytest
import torch
from tiny_tasks import answer_rows, labelled_rows, prepared, tagged_rows, tiny_base, write_rows
from transformers import BertForSequenceClassification

from peftly import evaluate, load_base, open_run
from peftly.evaluation.states import label_states
from peftly.runs import RunConfig, held_out_split, run, run_together
from peftly.runs.baselines import BASE, PROBE
from peftly.runs.config import JobsConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")


def settings_for(base, tmp_path, rows=labelled_rows, **others):
    file = write_rows(tmp_path / f"{rows.__name__}.jsonl", rows())
    train = {"epochs": 1, "batch_size": 8, **others.pop("train", {})}
    values = {"base": str(base), "data": {"train": str(file)}, "method": "lora", "dtype": "float32"}
    return RunConfig.model_validate({**values, "train": train, "out": str(tmp_path / "run"), **others})


def written(out):
    return json.loads((out / "evaluation.json").read_text())["baselines"]


@pytest.mark.parametrize(
    ("architecture", "task"), [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("t5", "seq2seq_lm")]
)
@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_labels_of_a_language_model_are_compared_with_its_base_and_a_probe(
    architecture, task, method, task_base, tmp_path
):
    result = run(
        settings_for(task_base(architecture), tmp_path, task=task, method=method, train={"learning_rate": 1e-2})
    )
    assert list(result.baselines) == [BASE, PROBE]
    held_out = held_out_split(open_run(tmp_path / "run"), None)
    base = load_base(str(task_base(architecture)), dtype="float32", task=task)
    untouched = evaluate(base.model, base.tokenizer, held_out.split, held_out.row_format)
    assert result.baselines[BASE].accuracy == untouched.accuracy
    assert result.baselines[BASE].loss == pytest.approx(untouched.loss, rel=1e-5)
    assert result.baselines[BASE].loss != pytest.approx(result.evaluation.loss, rel=1e-3)
    assert result.baselines[PROBE].accuracy > 0.9, "the texts of the two labels have no word in common"
    stored = written(tmp_path / "run")
    assert stored[BASE]["loss"] == pytest.approx(untouched.loss, rel=1e-5)
    assert stored[PROBE]["accuracy"] == result.baselines[PROBE].accuracy
    assert "loss" not in stored[PROBE], "that of a language model is a mean over tokens"
    assert result.comparable_baselines() == stored, "the screen shows these"
    page = (tmp_path / "run" / "report.html").read_text()
    assert f">{BASE}</th>" in page
    assert f">{PROBE}</th>" in page


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("architecture", "task"), [("llama", "causal_lm"), ("t5", "seq2seq_lm")])
def test_a_probe_reads_the_state_that_predicts_the_first_token_of_a_label(
    architecture, task, side, task_base, tmp_path
):
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, labelled_rows())
    tokenizer.padding_side = side
    encoded = data.train.encoded
    found = label_states(model, tokenizer, encoded, batch_size=5)
    head = model.get_output_embeddings().weight
    for index in (0, 1, 17):
        example = encoded[index]
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            if task == "causal_lm":
                expected = model(ids).logits[0, example.trained.index(True) - 1]
            else:
                start = torch.tensor([[model.config.decoder_start_token_id]])
                expected = model(ids, decoder_input_ids=start).logits[0, 0]
        torch.testing.assert_close(found[index].to(head.dtype) @ head.T, expected, atol=1e-4, rtol=1e-4)


def test_the_base_of_a_new_head_has_no_labels_of_its_own(task_base, tmp_path):
    lines = []
    result = run(settings_for(task_base("bert"), tmp_path, task="sequence_classification"), log=lines.append)
    assert list(result.baselines) == [PROBE]
    assert "evaluating the linear probe on the validation split" in lines
    assert set(written(tmp_path / "run")[PROBE]) >= {"loss", "accuracy", "macro_f1"}


def test_a_base_with_a_head_for_the_labels_is_scored_with_it(tmp_path):
    tiny_base("bert", tmp_path / "base")
    labels = {0: "complaint", 1: "no complaint"}
    model = BertForSequenceClassification.from_pretrained(
        tmp_path / "base", id2label=labels, label2id={name: number for number, name in labels.items()}
    )
    model.save_pretrained(tmp_path / "base")
    result = run(settings_for(tmp_path / "base", tmp_path, task="sequence_classification"))
    held_out = held_out_split(open_run(tmp_path / "run"), None)
    labels = held_out.row_format.labels
    base = load_base(str(tmp_path / "base"), dtype="float32", task="sequence_classification", labels=labels)
    untouched = evaluate(base.model, base.tokenizer, held_out.split, held_out.row_format)
    assert result.baselines[BASE].loss == pytest.approx(untouched.loss, rel=1e-4)
    assert PROBE in result.baselines


def test_completions_are_compared_with_the_base(task_base, tmp_path):
    result = run(settings_for(task_base("llama"), tmp_path, answer_rows))
    assert list(result.baselines) == [BASE]
    assert result.baselines[BASE].perplexity > result.evaluation.perplexity
    assert set(written(tmp_path / "run")[BASE]) == {"rows", "tokens", "loss", "perplexity", "token_accuracy"}


@pytest.mark.parametrize(("architecture", "rows"), [("llama", labelled_rows), ("bert", tagged_rows)])
def test_a_setting_leaves_the_baselines_out(architecture, rows, task_base, tmp_path):
    result = run(settings_for(task_base(architecture), tmp_path, rows, baselines=False))
    assert result.baselines == {}
    assert written(tmp_path / "run") == {}
    page = (tmp_path / "run" / "report.html").read_text()
    assert BASE not in page
    assert PROBE not in page


def test_runs_side_by_side_with_equal_data_share_their_baselines(task_base, tmp_path):
    first = settings_for(task_base("llama"), tmp_path)
    members = run_together(RunConfig.model_validate(first.model_dump() | {"ensemble": 2}))
    assert [row["name"] for row in members.rows] == ["member_1", "member_2", BASE, PROBE, "ensemble"]
    assert [row["loss"] is None for row in members.rows] == [False, False, False, True, False]
    other = write_rows(tmp_path / "other.jsonl", labelled_rows(7))
    shared = {"base": first.base, "dtype": "float32", "method": "lora", "train": {"epochs": 1, "batch_size": 8}}

    def jobs(*files):
        parts = {
            name: shared | {"data": {"train": str(file)}, "out": str(tmp_path / "jobs" / name)}
            for name, file in zip(("one", "two"), files, strict=True)
        }
        result = run_together(JobsConfig.model_validate({"jobs": parts, "out": str(tmp_path / "jobs")}), overwrite=True)
        return [row["name"] for row in result.rows]

    (file,) = first.data.sources
    assert jobs(file, file) == ["one", "two", BASE, PROBE]
    baselines = [f"{name}: {baseline}" for name in ("one", "two") for baseline in (BASE, PROBE)]
    assert jobs(file, other) == ["one", "two", *baselines]


@pytest.mark.parametrize("architecture", ["roberta", "distilbert"])
def test_a_probe_of_a_member_reads_the_new_layers_of_this_member(architecture, task_base, tmp_path):
    """The head of these classes has a random layer in front of its last one, another one for every member."""
    settings = settings_for(
        task_base(architecture),
        tmp_path,
        task="sequence_classification",
        head="transformers",
        train={"learning_rate": 1e-12},
    )
    members = run_together(RunConfig.model_validate(settings.model_dump() | {"ensemble": 2}))
    for result in members.runs.values():
        assert result.baselines[PROBE].loss == pytest.approx(result.evaluation.loss, rel=1e-4)
    losses = {result.baselines[PROBE].loss for result in members.runs.values()}
    assert len(losses) == 2


def test_a_job_without_baselines_takes_them_from_no_other_job(task_base, tmp_path):
    settings = settings_for(task_base("llama"), tmp_path).model_dump()
    jobs = {
        name: settings | {"out": str(tmp_path / "run" / name), "baselines": name == "two"} for name in ("one", "two")
    }
    result = run_together(JobsConfig.model_validate({"jobs": jobs, "out": str(tmp_path / "run")}))
    assert [list(run.baselines) for run in result.runs.values()] == [[], [BASE, PROBE]]
