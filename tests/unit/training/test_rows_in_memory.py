"""Training and evaluation on rows in memory: the same examples as from a file."""

import json

import datasets
import pandas as pd
import pytest
from tiny_tasks import tiny_base

import peftly
from peftly.data import load_data, read_rows
from peftly.errors import ConfigError, DataError

ROWS = [
    {"instruction": f"question {number}", "input": None if number % 2 else "a text", "output": "yes no"[: 3 + number]}
    for number in range(12)
]


def ids(data):
    return [example.input_ids for split in (data.train, data.validation) for example in split.encoded]


def sources(folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return {
        "file": str(path),
        "list": ROWS,
        "iterator": iter(ROWS),
        "frame": pd.DataFrame(ROWS),
        "frame with NaN": pd.DataFrame(ROWS).astype({"input": object}).fillna({"input": float("nan")}),
        "Dataset": datasets.Dataset.from_list(ROWS),
        "IterableDataset": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        "DatasetDict": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
        "mapping": {"train": pd.DataFrame(ROWS)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def base(folder):
    return tiny_base("llama", folder / "llama")


def open_adapted(base):
    model, tokenizer = peftly.load_base(str(base), dtype="float32")
    return peftly.attach(model, peftly.LoRA(rank=2)), tokenizer


def test_texts_that_the_tokenizer_does_not_know_are_refused(tmp_path):
    """An English encoder trained on Chinese reviews, two thirds of whose tokens were unknown."""
    model, tokenizer = peftly.load_base(
        str(tiny_base("bert", tmp_path / "bert")), task="sequence_classification", labels=["0", "1"]
    )
    peftly.attach(model, peftly.LoRA(rank=2))
    rows = [{"text": f"很好看的电影推荐 {'late ' * (number % 4)}", "label": str(number % 2)} for number in range(12)]
    with pytest.raises(DataError, match=r"does not know most of the text in \d+ of \d+ training examples .*row"):
        peftly.train(model, rows, peftly.TrainConfig(max_steps=1), tokenizer=tokenizer)


def test_every_source_gives_the_same_examples(folder, base):
    _, tokenizer = open_adapted(base)
    expected = ids(load_data(ROWS, tokenizer))
    assert sum(map(len, expected)) > 100
    for name, source in sources(folder).items():
        assert ids(load_data(source, tokenizer)) == expected, name


def test_train_and_evaluate_rows(base):
    """Rows and the tokenizer of load_base are enough; the result has the row format for the evaluation."""
    model, tokenizer = open_adapted(base)
    notes = []
    callback = peftly.Callback()
    callback.on_note = notes.append
    config = peftly.TrainConfig(epochs=1, batch_size=4)
    result = peftly.train(model, datasets.Dataset.from_list(ROWS), config, callbacks=[callback])
    assert ids(result.data) == ids(load_data(ROWS, tokenizer))
    assert any("read as instructions (instruction + output)" in note for note in notes)
    assert any("validation is 1 row taken from train" in note for note in notes)
    test = [*ROWS[:5], {"instruction": "without an answer", "output": ""}]
    with pytest.warns(UserWarning, match=r"test: 1 × row dropped: its answer is empty"):
        found = peftly.evaluate(model, tokenizer, pd.DataFrame(test), result.data.row_format)
    expected = load_data(ROWS[:5], tokenizer, validation_fraction=0).train
    assert found.loss == pytest.approx(peftly.evaluate(model, tokenizer, expected, result.data.row_format).loss)


def test_a_model_of_another_origin_needs_its_tokenizer(base):
    from transformers import AutoModelForCausalLM

    model = peftly.attach(AutoModelForCausalLM.from_pretrained(base), peftly.LoRA(rank=2))
    with pytest.raises(ConfigError, match=r"load_base did not open it; give tokenizer="):
        peftly.train(model, ROWS)


def test_values_of_numpy_and_missing_values():
    frame = pd.DataFrame({"text": ["a", None, "c"], "label": pd.array([1, 0, None], dtype="Int64")})
    frame["kind"] = pd.Categorical(["low", "high", "low"], categories=["low", "high"])
    rows = read_rows(frame)
    assert list(rows.rows) == [
        {"text": "a", "label": 1, "kind": "low"},
        {"text": None, "label": 0, "kind": "high"},
        {"text": "c", "label": None, "kind": "low"},
    ]
    assert rows.class_names == {"kind": ["low", "high"]}
    plain = [{"text": "a", "label": 1}, {"text": "b", "label": pd.NA}]
    assert list(read_rows(plain).rows) == [{"text": "a", "label": 1}, {"text": "b", "label": None}]
    (row,) = read_rows([{"label": frame["label"].to_numpy(dtype=float, na_value=-1).astype("int64")[0]}]).rows
    assert type(row["label"]) is int


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pd.DataFrame([["a", "b"]]), r"the columns of the frame are '0', '1'; each needs a name of its own"),
        (["a.jsonl?"], r"row 1 is a text; every row must be an object"),
        (3, r"is a number; expected a file, .* a pandas.DataFrame"),
    ],
)
def test_objects_that_are_no_rows(source, message):
    with pytest.raises(DataError, match=message):
        read_rows(source)
