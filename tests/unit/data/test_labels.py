"""Labels: their order in every file format, scores in place of labels, and rows that cannot be used."""

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from chatml import PLAIN, chatty
from data_tokenizers import family

import peftly
from peftly.data import DataConfig, Rows, load_data
from peftly.data.detect import detect_format
from peftly.data.labels import label_order
from peftly.errors import DataError

TOKENIZER = family("byte_level")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def labels_of(values: list, task: str = "sequence_classification") -> tuple[str, ...]:
    rows = Rows("t", [{"text": f"a {n}", "label": value} for n, value in enumerate(values)])
    return detect_format(rows, None, None, task)[0].labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (list(range(12)), [str(n) for n in range(12)]),
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),
        ([10.0, 2.0, 1.0], ["1", "2", "10"]),
        (["10.0", "2.0", "1.0"], ["1.0", "2.0", "10.0"]),
        ([1, -1, 0], ["-1", "0", "1"]),
        ([True, False], ["False", "True"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["yes ", "no", " yes"], ["no", "yes"]),
        (["other", "10", "9"], ["9", "10", "other"]),
        (["007", "7", "10"], ["007", "7", "10"]),
        (["nan", "inf", "1"], ["1", "inf", "nan"]),
        (["v1.5", "1.5"], ["1.5", "v1.5"]),
        (["1,5", ".5", "1e2", "x"], [".5", "1,5", "1e2", "x"]),
    ],
)
def test_the_order_of_labels(values, expected):
    assert labels_of(values) == tuple(expected)
    assert labels_of(values, "causal_lm") == tuple(expected)
    assert label_order(reversed(expected)) == expected


# --- classes of Parquet files and of the `datasets` library

NAMES = ["World", "Sports", "Business", "Sci/Tech"]


def dataset(values: list[int], names: list[str] = NAMES) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": [f"a {n}" for n in values], "label": values}, features=features)


def parquet(data: datasets.Dataset) -> str:
    table = data.data.table
    pyarrow.parquet.write_table(table, "t.parquet")
    return "t.parquet"


@pytest.mark.parametrize("kind", ["parquet", "dataset", "stream", "saved", "dict"])
def test_classes_keep_the_order_of_their_numbers(kind):
    data = dataset([3, 2, 1, 0] * 3)
    data.save_to_disk("saved")
    source = {
        "parquet": parquet(data),
        "dataset": data,
        "stream": data.to_iterable_dataset(),
        "saved": "saved",
        "dict": datasets.DatasetDict(train=data),
    }[kind]
    loaded = load_data(source, TOKENIZER, task="sequence_classification", validation_fraction=0)
    assert loaded.row_format.labels == tuple(NAMES)
    assert [example.label for example in loaded.train.encoded[:4]] == [3, 2, 1, 0]
    assert list(loaded.report.splits["train"].labels) == NAMES


def test_a_class_without_a_training_row_keeps_its_number_and_is_named():
    loaded = load_data(dataset([0, 2, 3] * 4), TOKENIZER, task="sequence_classification", validation_fraction=0)
    assert loaded.row_format.labels == tuple(NAMES)
    assert "train: no training row has the class 'Sports' of 'label'" in loaded.report.notes


def test_the_class_that_marks_unlabelled_rows_is_no_label():
    names = ["Unlabeled", "complaint", "no complaint"]
    data = datasets.DatasetDict(train=dataset([1, 2] * 4, names), test=dataset([0] * 4, names))
    loaded = load_data(data, TOKENIZER)
    assert loaded.row_format.labels == ("complaint", "no complaint")
    assert loaded.test is None
    assert "test has no value in 'label', so it is no test split" in loaded.report.notes


def test_tags_get_the_names_of_their_classes():
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    for feature in (
        datasets.Sequence(datasets.ClassLabel(names=names)),
        datasets.List(datasets.ClassLabel(names=names)),
    ):
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": feature})
        rows = {"tokens": [["Ann", "Lee", "ran"], ["Rome"]], "ner_tags": [[1, 2, 0], [3]]}
        data = datasets.Dataset.from_dict(rows, features=features)
        for source in (data, parquet(data)):
            loaded = load_data(source, TOKENIZER, task="token_classification", validation_fraction=0)
            assert loaded.row_format.labels == tuple(names)
            assert loaded.train.examples[0].tags == ("B-PER", "I-PER", "O")


def test_validation_rows_do_not_depend_on_the_order_of_the_labels():
    numbers = [n * 7 % 12 for n in range(50)]
    rows = [{"text": f"a {n}", "label": f"{number}"} for n, number in enumerate(numbers)]
    renamed = [{**row, "label": "abcdefghijkl"[sorted(map(str, range(12))).index(row["label"])]} for row in rows]
    chosen = [load_data(table, TOKENIZER, validation_fraction=0.3).validation.examples for table in (rows, renamed)]
    assert [example.prompt for example in chosen[0]] == [example.prompt for example in chosen[1]]


# --- scores


def scores(name: str) -> str:
    values = [f"{0.37 * n:.3f}" for n in range(40)]
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": float(v)} for n, v in enumerate(values)]
    if name.endswith("sv"):
        mark = "\t" if name.endswith(".tsv") else ","
        lines = [
            mark.join(rows[0]),
            *(mark.join((r["sentence1"], r["sentence2"], v)) for r, v in zip(rows, values, strict=True)),
        ]
        Path(name).write_text("\n".join(lines))
    elif name.endswith(".jsonl"):
        Path(name).write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    return name


@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm", "seq2seq_lm"])
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.parquet"])
def test_scores_are_refused_in_every_format(name, task):
    with pytest.raises(
        DataError, match=r"^t\.\w+(: (line|row) \d+)?: field 'label' holds the score \S+, and regression"
    ):
        load_data(scores(name), TOKENIZER, task=task)


# --- rows that cannot be used


def write(name: str, rows: list[dict]) -> str:
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    elif name.endswith(".csv"):
        text = "\n".join(",".join("" if value is None else str(value) for value in row.values()) for row in rows)
        Path(name).write_text(f"{','.join(rows[0])}\n{text}\n")
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def findings(data: peftly.data.Data, split: str = "train") -> dict[str, int]:
    """Return the number of rows that were left out, by their kind of finding."""
    found = data.report.splits[split].findings
    return {finding.kind: finding.count for finding in found if "row dropped" in finding.line()}


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
@pytest.mark.parametrize(
    ("task", "row", "empty", "kind"),
    [
        ("causal_lm", {"text": "a", "label": "x"}, {"label": ""}, "no_label"),
        ("sequence_classification", {"text": "a", "label": "x"}, {"label": " "}, "no_label"),
        ("sequence_classification", {"text": "a", "label": "x"}, {"text": ""}, "empty_text"),
        ("causal_lm", {"text": "a", "label": "x"}, {"text": " "}, "empty_text"),
        ("causal_lm", {"prompt": "a", "completion": "x"}, {"completion": ""}, "empty_answer"),
        ("seq2seq_lm", {"prompt": "a", "completion": "x"}, {"prompt": ""}, "empty_text"),
        ("causal_lm", {"instruction": "a", "input": "", "output": "x"}, {"instruction": ""}, "empty_text"),
        ("causal_lm", {"text": "a"}, {"text": " "}, "empty_text"),
    ],
)
def test_empty_values_are_dropped_and_counted(name, task, row, empty, kind):
    null = dict.fromkeys(empty) if not name.endswith(".csv") else empty
    full = [{**row, "label": "xy"[n % 2]} if "label" in row else {**row} for n in range(8)]
    rows = [*full[:2], {**row, **empty}, *full[2:], {**row, **null}]
    data = load_data(write(name, rows), TOKENIZER, task=task, validation_fraction=0.25)
    assert findings(data) == {kind: 2}
    report = data.report.splits["train"]
    assert (report.rows, report.examples, report.dropped) == (8, 6, 2)
    place = "row 3" if name == "t.parquet" else f"line {3 + name.endswith('.csv')}"
    assert report.first_dropped == f"{name}: {place}"
    assert len(data.validation.examples) == 2
    assert set(data.row_format.labels) <= {"x", "y"}


def test_prompts_that_are_all_empty_are_meant_so():
    rows = [{"prompt": "", "completion": f"once {n}"} for n in range(4)]
    data = load_data(rows, TOKENIZER, validation_fraction=0)
    assert len(data.train.examples) == 4


@pytest.mark.parametrize("mark", [(True, False), ("True", "False"), (1, 0), ("true", "false")])
@pytest.mark.parametrize("field", ["label", "kto_tag"])
def test_bad_completions_are_not_trained(mark, field):
    rows = [
        {"prompt": f"say {n}", "completion": "go away" if n % 2 else "hello", field: mark[n % 2]} for n in range(12)
    ]
    for options in ({}, {"template": "{prompt}", "target": "completion"}):
        data = load_data(rows, TOKENIZER, validation=rows, **options)
        for split in (data.train, data.validation):
            assert {example.completion.strip() for example in split.examples} == {"hello"}
        assert findings(data) == {"bad_completion": 6}
        assert not any("not used" in note for note in data.report.notes)


@pytest.mark.parametrize("empty", [None, "", float("nan")])
def test_a_completion_without_a_mark_is_dropped_and_does_not_hide_the_marks(empty):
    marks = ["desirable", "undesirable", empty] if empty == "" else [True, False, empty]
    rows = [{"prompt": f"say {n}", "completion": f"hello {n % 3}", "label": marks[n % 3]} for n in range(12)]
    data = load_data(rows, TOKENIZER, validation_fraction=0)
    assert {example.completion.strip() for example in data.train.examples} == {"hello 0"}
    assert findings(data) == {"bad_completion": 4, "no_label": 4}


@pytest.mark.parametrize("numbers", [(0, 1), (False, True)])
def test_numbers_of_labels_beside_their_names_mark_nothing(numbers):
    names = ("negative", "positive")
    rows = [{"text": f"order {n}", "label": numbers[n % 2], "label_text": names[n % 2]} for n in range(12)]
    data = load_data(rows, TOKENIZER, validation_fraction=0)
    (note,) = [note for note in data.report.notes if "not used" in note]
    assert note.endswith("to learn 'label_text' in place of 'label': --target label_text")
    data = load_data(rows, TOKENIZER, validation_fraction=0, target="label_text")
    assert [example.completion.strip() for example in data.train.examples] == [row["label_text"] for row in rows]


def test_a_number_beside_a_conversation_is_a_class_and_a_truth_value_a_mark():
    def kept(zero, one):
        messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
        rows = [{"messages": messages, "label": one if n % 2 else zero} for n in range(12)]
        return len(load_data(rows, chatty(PLAIN), validation_fraction=0).train.examples)

    assert (kept(0, 1), kept(False, True)) == (12, 6)


@pytest.mark.parametrize("labels", [["1,5", "2,0", "0,5"], ["0.5", "1e-05", "1"], [".5", "1.5", "1"]])
def test_scores_are_refused_in_every_spelling(labels):
    rows = [{"text": f"order {n}", "label": labels[n % 3]} for n in range(12)]
    with pytest.raises(DataError, match="field 'label' holds the score"):
        load_data(rows, TOKENIZER)


def test_the_mark_of_untrained_tokens_is_no_tag():
    rows = [{"tokens": ["a", "b"], "tags": [0, -100]}, {"tokens": ["c"], "tags": [1]}]
    with pytest.raises(DataError, match="row 1: field 'tags' holds -100, which marks tokens that are not trained"):
        load_data(rows, TOKENIZER, task="token_classification")


def test_other_labels_beside_a_completion_mark_nothing():
    rows = [{"prompt": f"say {n}", "completion": "hello", "label": f"kind {n % 2}"} for n in range(4)]
    assert findings(load_data(rows, TOKENIZER, validation_fraction=0)) == {}


# --- several files, and splits that are left out

ROWS = [{"text": f"order {n}", "label": "no" if n % 2 else "yes"} for n in range(8)]


def test_several_files_are_joined():
    first, second = write("a.jsonl", ROWS[:5]), write("b.csv", ROWS[5:])
    whole = load_data(ROWS, TOKENIZER, validation_fraction=0)
    for source in (DataConfig(train=[first, second], validation_fraction=0), [first, Path(second)]):
        options = {} if isinstance(source, DataConfig) else {"validation_fraction": 0}
        data = load_data(source, TOKENIZER, **options)
        assert data.train.encoded == whole.train.encoded
        assert data.report.splits["train"].source == "a.jsonl + b.csv"
        assert data.train.examples.location(6) == "b.csv: line 3"
    held_out = load_data(DataConfig(train=first, validation=[second], test=[first, second]), TOKENIZER)
    assert (len(held_out.validation.examples), len(held_out.test.examples)) == (3, 8)


def test_an_error_in_the_second_file_names_it():
    first, second = write("a.jsonl", ROWS), write("b.jsonl", [*ROWS[:1], {"text": "x"}])
    with pytest.raises(DataError, match=r"^b\.jsonl: line 2 has no field 'label'"):
        load_data(DataConfig(train=[first, second]), TOKENIZER)


def test_the_splits_of_several_data_sets_are_joined():
    part = dataset([0, 1, 2, 3])
    datasets.DatasetDict(train=part, test=part.select([0])).save_to_disk("one")
    datasets.DatasetDict(train=part, test=part.select([1, 2])).save_to_disk("two")
    data = load_data(DataConfig(train=["one", "two"], validation_fraction=0), TOKENIZER)
    assert (len(data.train.examples), len(data.test.examples)) == (8, 3)
    assert data.row_format.labels == tuple(NAMES)
    assert "test is the split 'test' of one + two" in data.report.notes


@pytest.mark.parametrize("train", [["a", "a"], [], ["a", 5], {}, 5])
def test_impossible_lists_of_files(train):
    with pytest.raises(ValueError, match=r"named twice|give a file|name is missing"):
        DataConfig(train=train)


def test_a_split_of_a_data_set_is_left_out_as_asked():
    part = dataset([0, 1, 2, 3] * 4)
    datasets.DatasetDict(train=part, validation=part, test=part).save_to_disk("set")
    data = load_data(DataConfig(train="set", validation="none", test="none"), TOKENIZER)
    assert (data.validation, data.test) == (None, None)
    assert "no test rows, as asked: the split 'test' is left out" in data.report.notes
    assert load_data("set", TOKENIZER, test="none").validation is not None
    assert load_data(ROWS, TOKENIZER, validation="none").validation is None
