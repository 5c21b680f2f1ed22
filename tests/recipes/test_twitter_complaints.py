"""Complaints on Twitter, from the YAML files to predictions for RAFT, and from the script, with a tiny Llama."""

import csv
import json
import re
import shlex

from peftly.runs import load_config

TEST = "examples/data/twitter_complaints_test.jsonl"
FEW = ["--set", "train.max_steps=4", "--set", "baselines=false"]


def columns(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_an_ensemble_is_trained_and_predicts_in_the_form_of_raft(peftly, rows_of, tiny_llama_folder, tmp_path):
    out, file = tmp_path / "votes", tmp_path / "votes.csv"
    options = ["--base", tiny_llama_folder, "--ensemble", 2, "--out", out, *FEW]
    outcome = peftly("train", "examples/twitter_complaints.yaml", *options)
    assert outcome.code == 0, outcome.err
    config = json.loads((out / "member_1" / "adapter" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 8
    outcome = peftly("predict", out, "--data", TEST, "--out", file, "--form", "raft", "--limit", 5)
    assert outcome.code == 0, outcome.err
    rows = columns(file)
    assert [list(row) for row in rows] == [["ID", "Label"]] * 5
    assert [row["ID"] for row in rows] == [str(row["ID"]) for row in rows_of("twitter_complaints_test")[:5]]
    assert {row["Label"] for row in rows} <= {"complaint", "no complaint"}


def test_the_ablation_trains_three_prompts(peftly, tiny_llama_folder, tmp_path):
    out = tmp_path / "ablation"
    options = ["--base", tiny_llama_folder, "--out", out, *FEW]
    outcome = peftly("train", "examples/twitter_complaints_ablation.yaml", *options)
    assert outcome.code == 0, outcome.err
    lengths = {
        job: json.loads((out / job / "adapter" / "adapter_config.json").read_text())["num_virtual_tokens"]
        for job in ("length-1", "length-20", "random")
    }
    assert lengths == {"length-1": 1, "length-20": 20, "random": 8}


def test_the_ablation_differs_from_the_recipe_in_its_jobs_only(root):
    one = load_config(root / "examples" / "twitter_complaints.yaml")
    for job in load_config(root / "examples" / "twitter_complaints_ablation.yaml").jobs.values():
        assert (job.base, job.data, job.train) == (one.base, one.data, one.train)
        differing = {key for key, value in job.method.model_dump().items() if value != one.method.model_dump()[key]}
        assert differing in ({"num_virtual_tokens"}, {"init", "init_text"})


def test_the_command_for_bloomz_and_raft_is_a_configuration(root):
    file = root / "examples" / "twitter_complaints.yaml"
    comment = re.search(r"^#   peftly train (.*?)^base", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)[1]
    words = shlex.split(comment.replace("\\\n#", ""), comments=False)
    flags = {name.removeprefix("--"): value for name, value in zip(words[1::2], words[2::2], strict=True)}
    config = load_config(file, flags=flags)
    assert config.base == "bigscience/bloomz-560m"
    assert config.data.train == "ought/raft:twitter_complaints[train[:40]]"
    assert config.data.validation == "ought/raft:twitter_complaints[train[40:]]"
    assert config.data.test == "none"


def test_the_script_writes_perplexities_and_predictions(example, tiny_llama_folder, tmp_path):
    found = example("twitter_complaints").main(base=str(tiny_llama_folder), folder=str(tmp_path / "run"), epochs=2)
    assert [epoch["epoch"] for epoch in found["curve"]] == [1, 2]
    assert all(epoch["train"] > 1 and epoch["held_out"] > 1 for epoch in found["curve"])
    assert len(columns(tmp_path / "run" / "predictions.csv")) == found["predictions"] == 100


def test_the_tweets_are_those_of_the_sample_data_without_a_row_in_two_splits(rows_of, root):
    sample = root / "src" / "peftly" / "sample_data" / "complaints"
    seen = set()
    for name, split, count in (("", "train", 50), ("_validation", "validation", 40), ("_test", "test", 100)):
        rows = rows_of(f"twitter_complaints{name}")
        known = {
            row["text"]: row["label"] for row in map(json.loads, (sample / f"{split}.jsonl").open(encoding="utf-8"))
        }
        assert len(rows) == count
        assert sum(row["Label"] == "complaint" for row in rows) == count // 2
        assert all(known[row["Tweet text"]] == row["Label"] for row in rows)
        texts = {row["Tweet text"] for row in rows}
        assert not texts & seen
        seen |= texts
