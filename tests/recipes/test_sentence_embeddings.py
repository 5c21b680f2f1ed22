"""Sentence embeddings: the script trains a tiny encoder, and its folder opens with the same scores."""

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers")


def test_the_script(example, task_base, tmp_path):
    found = example("sentence_embeddings").main(str(tmp_path), steps=4, base=str(task_base("bert")))
    assert found["after: similarity"] != found["before: similarity"]
    assert found["opened again: accuracy"] == found["after: accuracy"]
    assert found["opened again: similarity"] == pytest.approx(found["after: similarity"], abs=1e-5)


def test_no_request_is_in_both_parts():
    rows = [json.loads(line) for line in Path("examples/data/support_topics.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == len(rows)
    assert Counter((row["topic"], row["split"]) for row in rows) == {
        (topic, split): number
        for topic in {row["topic"] for row in rows}
        for split, number in (("train", 5), ("test", 3))
    }
