"""Named entities, from the YAML file, with `predict`, and from the script, with a tiny BERT."""

import json

from peftly.runs import load_config


def test_two_methods_are_trained_and_predict_tags_words(peftly, task_base, tmp_path):
    out, file = tmp_path / "run", tmp_path / "tags.jsonl"
    few = ["--set", "train.max_steps=4"]
    outcome = peftly("train", "examples/named_entities.yaml", "--base", task_base("bert"), "--out", out, *few)
    assert outcome.code == 0, outcome.err
    for method in ("lora", "p_tuning_v2"):
        assert json.loads((out / method / "evaluation.json").read_text())["entity_f1"] is not None
    test = "examples/data/named_entities_test.jsonl"
    outcome = peftly("predict", out / "lora", "--data", test, "--out", file, "--limit", 3)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert len(row["prediction"]) == len(row["tokens"])


def test_the_file_is_read_with_the_base_and_the_data_of_the_hub(root):
    flags = {"base": "google-bert/bert-base-cased", "data": "eriktks/conll2003", "test": "eriktks/conll2003"}
    jobs = load_config(root / "examples" / "named_entities.yaml", flags=flags).jobs
    assert {job.base for job in jobs.values()} == {flags["base"]}
    assert {job.data.train for job in jobs.values()} == {job.data.test for job in jobs.values()} == {flags["data"]}


def test_the_script_tags_a_new_sentence(example, task_base, tmp_path):
    found = example("named_entities").main(base=str(task_base("bert")), folder=str(tmp_path), epochs=1)
    assert 0 <= found["entity_f1"] <= 1
    assert [word for word, _ in found["tagged"]][:2] == ["Ada", "Wright"]
    assert {tag for _, tag in found["tagged"]} <= {
        "O",
        *(f"{mark}-{kind}" for mark in "BI" for kind in ("PER", "ORG", "LOC")),
    }


def test_the_sentences_have_one_tag_for_each_word_and_no_entity_begins_inside(rows_of):
    train, test = rows_of("named_entities"), rows_of("named_entities_test")
    assert (len(train), len(test)) == (103, 50)
    for row in train + test:
        assert len(row["tokens"]) == len(row["tags"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]
    assert not {tuple(row["tokens"]) for row in train} & {tuple(row["tokens"]) for row in test}
