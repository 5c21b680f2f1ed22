"""`peftly predict`, and `peftly generate` for several texts and the rows of a file."""

import csv
import json

import datasets
import pytest
from commands import peftly_here
from tiny_tasks import labelled_rows

from peftly.cli.next_commands import next_commands
from peftly.data import RowFormat


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama_folder):
    """A run on a data set whose test split has no labels, as that of a benchmark."""
    folder = tmp_path_factory.mktemp("predict")
    train = labelled_rows(1)
    test = [{"ID": number + 50, "text": f"迟到 {number}", "label": None} for number in range(20)]
    parts = {"train": [{"ID": number, **row} for number, row in enumerate(train)], "test": test}
    features = datasets.Features({"ID": datasets.Value("int64"), "text": datasets.Value("string")})
    features["label"] = datasets.Value("string")
    splits = {name: datasets.Dataset.from_list(rows, features=features) for name, rows in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(folder / "data")
    options = ("--method", "lora", "--set", "train.max_steps=2")
    outcome = peftly_here(
        "train", "--base", tiny_llama_folder, "--data", folder / "data", "--out", folder / "run", *options
    )
    assert outcome.code == 0, outcome
    return folder / "run"


def test_unlabelled_rows_become_a_submission(run, peftly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (advised,) = [line for line in next_commands(run, LABELS, has_held_out=True) if " predict " in line]
    assert advised.endswith(f"predict {run} --data {run.parent / 'data'} --out predictions.csv")
    outcome = peftly("predict", run, "--data", run.parent / "data", "--out", "predictions.csv", "--form", "raft")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["ID", "Label"]
    assert [int(number) for number, _ in lines] == list(range(50, 70))
    assert {label for _, label in lines} <= {row["label"] for row in labelled_rows(1)}
    assert "20 rows of" in outcome.out
    again = peftly("predict", run, "--data", run.parent / "data", "--out", "predictions.csv", "--form", "raft")
    assert again.code == 2
    assert again.err == "error: predictions.csv exists; give --overwrite to replace it, or another --out\n"


LABELS = RowFormat("label", "{text}\nLabel:", "label", ("a", "b"))


def test_rows_with_labels_are_scored_at_the_end(run, peftly, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [*labelled_rows(1)[:4], {"text": " "}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = peftly("predict", run, "--data", file, "--out", tmp_path / "out.json", "--batch-size", 2)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert "4 rows with a target" in outcome.out
    assert "accuracy" in outcome.out
    assert f"1 row without a text to read: the prediction is empty (first: {file}: line 5)" in outcome.out
    scores = json.loads(peftly("evaluate", run, "--data", file, "--json").out)
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["prediction"] for row in written[:4]] == [row["predicted"] for row in scores["predictions"]]
    assert written[4] == {"text": " ", "prediction": None, "probabilities": None}


def test_the_targets_may_have_another_name_and_a_missing_one_is_said(run, peftly, tmp_path):
    """A test file with `Label` instead of `label` got no score, without a word."""
    file = tmp_path / "rows.jsonl"
    rows = [{"text": row["text"] + "!", "Label": row["label"]} for row in labelled_rows(1)[:4]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("predict", run, "--data", file, "--out", tmp_path / "out.json", "--overwrite")
    outcome = peftly(*words)
    assert "no scores: the rows have no field 'label' (--target names another one)" in outcome.out
    outcome = peftly(*words, "--target", "Label")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert "4 rows with a target" in outcome.out
    outcome = peftly(*words, "--target", "mood")
    assert (outcome.code, "target 'mood' is no field of the rows" in outcome.err) == (2, True)


def test_scores_of_rows_that_were_trained_on_are_said_to_be(run, peftly, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [*labelled_rows(1)[:3], {"text": "never seen", "label": labelled_rows(1)[0]["label"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = peftly("predict", run, "--data", file, "--out", tmp_path / "out.json")
    assert "of 4 rows have a prompt that the adapter was trained on (first: " in outcome.out
    assert f"{file}: line 4" not in outcome.out


def test_the_answers_to_several_texts_follow_their_texts(run, peftly):
    options = ("--max-new-tokens", 4)
    texts = ["迟到了", "two\nlines"]
    outcome = peftly("generate", run, "--text", texts[0], "--text", texts[1], *options)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    alone = [peftly("generate", run, "--text", text, *options).out.strip() for text in texts]
    assert outcome.out == f"> 迟到了\n{alone[0]}\n\n> two\n> lines\n{alone[1]}\n"
    lines = peftly("generate", run, "--text", texts[0], "--text", texts[1], "--json", *options).out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == texts
    assert [row["prediction"].rstrip("\ufffd") for row in rows] == alone, "JSON keeps a character that was cut"


def test_the_answers_to_the_rows_of_a_file(run, peftly):
    data = run.parent / "data"
    outcome = peftly("generate", run, "--data", data, "--limit", 3, "--max-new-tokens", 4, "--batch-size", 2, "--json")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert [json.loads(line)["ID"] for line in outcome.out.splitlines()] == [50, 51, 52]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "run", "--data", "rows.jsonl"), "the file to write with --out predictions.jsonl"),
        (("predict", "run", "--out", "p.jsonl"), "give the rows with --data"),
        (("generate", "run", "--data", "r.jsonl", "--text", "a"), "--data has the texts in its rows; leave out --text"),
        (("generate", "run", "--text", "a", "--limit", "3"), "--limit is for the rows of --data"),
        (("generate", "run", "--prompt", "a", "--json"), "--json prints rows with their answers"),
        (("predict", "--data", "{rows}", "--out", "p.jsonl"), "give a run, or an untouched base with --base"),
        (("predict", "{run}", "--data", "{rows}", "--out", "p.xlsx"), "known are .jsonl"),
        (("predict", "{run}", "--data", "{rows}", "--out", "p.jsonl", "--form", "glue"), "form 'glue' is not known"),
        (("predict", "{run}", "--data", "{rows}", "--out", "p.jsonl", "--template", "x"), "--template does not fit"),
    ],
)
def test_options_without_effect_are_refused(arguments, message, run, peftly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    outcome = peftly(*(argument.format(run=run, rows="rows.jsonl") for argument in arguments))
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
