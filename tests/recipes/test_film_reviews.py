"""Film reviews, from the YAML file and from the script, with a tiny BERT."""

import json
import re

import pytest

from peftly.runs import load_config


def test_four_methods_are_trained_by_the_command(peftly, task_base, tmp_path):
    out = tmp_path / "run"
    few = ["--set", "train.max_steps=4", "--set", "train.learning_rate=0.01"]
    outcome = peftly("train", "examples/film_reviews.yaml", "--base", task_base("bert"), "--out", out, *few)
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    assert list(rows)[:4] == ["lora", "adapter", "p_tuning_v2", "full"]
    assert rows["lora"]["parameters"] < rows["full"]["parameters"]
    assert (out / "lora" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_file_is_read_with_the_base_and_the_data_of_the_hub(root):
    file = root / "examples" / "film_reviews.yaml"
    (line,) = re.findall(r"^#   peftly train (\S+) (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert line[0] == "examples/film_reviews.yaml"
    words = line[1].split()
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert flags == {"base": "google-bert/bert-base-uncased", "data": "stanfordnlp/imdb", "test": "stanfordnlp/imdb"}
    for job in load_config(file, flags=flags).jobs.values():
        assert (job.base, job.data.train, job.data.test) == tuple(flags.values())
        assert job.head == "transformers"


def test_the_script_trains_merges_and_opens_the_result_with_a_pipeline(example, task_base, tmp_path):
    found = example("film_reviews").main(base=str(task_base("bert")), folder=str(tmp_path), epochs=1)
    assert 0 <= found["accuracy"] <= 1
    for adapted, merged in zip(found["adapted"], found["merged"], strict=True):
        assert adapted["label"] == merged["label"]
        assert adapted["label"] in ("negative", "positive")
        assert adapted["score"] == pytest.approx(merged["score"], abs=1e-2)


def test_the_reviews_are_balanced_and_no_test_review_is_trained_on(rows_of):
    train, test = rows_of("film_reviews"), rows_of("film_reviews_test")
    assert (len(train), len(test)) == (200, 100)
    assert sum(row["label"] == "positive" for row in train) == 100
    assert sum(row["label"] == "positive" for row in test) == 50
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts)
