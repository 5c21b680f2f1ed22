"""`peftly explain` on a run, on an adapter alone, and on an adapter without a prompt."""

import json

import pytest
from commands import Peftly, peftly_here


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory, tiny_llama_folder, tweets):
    made = {}
    for method in ("prompt_tuning", "lora"):
        made[method] = tmp_path_factory.mktemp("runs") / method
        flags = ["--base", tiny_llama_folder, "--data", tweets, "--method", method, "--out", made[method]]
        outcome = peftly_here("train", *flags, "--epochs", "1")
        assert outcome.code == 0, outcome.err
    return made


def test_a_prompt_is_shown_by_its_nearest_tokens(peftly: Peftly, runs):
    outcome = peftly("explain", runs["prompt_tuning"])
    assert (outcome.code, outcome.err) == (0, "")
    assert "initial token" in outcome.out
    found = json.loads(peftly("explain", runs["prompt_tuning"], "--neighbours", "2", "--json").out)
    assert len(found["embeddings"]) == 20
    for row in found["embeddings"]:
        assert len(row["nearest"]) == 2
        assert 0 < row["moved"] < 10 * row["norm"]
        assert row["start"]["cosine"] == pytest.approx(1, abs=1e-4)


def test_without_the_run_nobody_knows_where_it_started(peftly: Peftly, runs, tmp_path):
    alone = (runs["prompt_tuning"] / "adapter").rename(tmp_path / "alone")
    found = json.loads(peftly("explain", alone, "--json").out)
    alone.rename(runs["prompt_tuning"] / "adapter")
    assert {row["moved"] for row in found["embeddings"]} == {None}


def test_lora_has_no_words(peftly: Peftly, runs):
    outcome = peftly("explain", runs["lora"])
    assert outcome.code == 2
    assert outcome.err == (
        "error: explain needs a soft prompt (prompt_tuning, p_tuning), and 'default' is an adapter of lora\n"
    )
