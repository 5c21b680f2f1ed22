"""`peftly.load_data` from every kind of source: files, the Hub, and objects in memory."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from data_tokenizers import family

import peftly
from peftly.data import Data, DataConfig, load_data, read_data, sources
from peftly.errors import ConfigError, PeftlyError

TOKENIZER = family("byte_level")
ROWS = [{"text": f"order {n}", "label": "no" if n % 4 else "yes"} for n in range(12)]
TEST_ROWS = [{"text": f"late {n}", "label": "no"} for n in range(3)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def json_lines(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def csv_file() -> str:
    Path("rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    return "rows.csv"


def with_class_labels() -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    numbers = {"no": 0, "yes": 1}
    return datasets.Dataset.from_list([{**row, "label": numbers[row["label"]]} for row in ROWS], features=features)


def saved_dataset() -> str:
    with_class_labels().save_to_disk("saved")
    return "saved"


def tokens(data: Data) -> dict[str, list]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: None if split is None else split.encoded for name, split in splits.items()}


def refusal(source: object, tokenizer: object = TOKENIZER, **settings: object) -> str:
    with pytest.raises(PeftlyError) as caught:
        peftly.load_data(source, tokenizer, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SOURCES = {
    "a path as text": lambda: json_lines("rows.jsonl", ROWS),
    "a path": lambda: Path(json_lines("rows.jsonl", ROWS)),
    "a CSV file": csv_file,
    "a saved Dataset": saved_dataset,
    "a list of rows": lambda: ROWS,
    "a tuple of rows": lambda: tuple(ROWS),
    "a Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "a Dataset with class numbers": with_class_labels,
    "a DatasetDict": lambda: datasets.DatasetDict(train=with_class_labels()),
    "a mapping to rows": lambda: {"train": ROWS},
    "a mapping to a file": lambda: {"train": json_lines("rows.jsonl", ROWS)},
    "a mapping to a Dataset": lambda: {"train": with_class_labels()},
    "a DataConfig": lambda: DataConfig(train=json_lines("rows.jsonl", ROWS)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_tokens(kind):
    data = peftly.load_data(SOURCES[kind](), TOKENIZER)
    expected = peftly.load_data(DataConfig(train=json_lines("expected.jsonl", ROWS)), TOKENIZER)
    assert tokens(data) == tokens(expected)
    assert data.row_format == expected.row_format
    assert data.report.splits["train"].labels == {"no": 8, "yes": 3}


def test_the_splits_of_a_mapping_and_of_keyword_arguments_are_the_same():
    file = json_lines("test.jsonl", TEST_ROWS)
    part = with_class_labels()
    expected = tokens(peftly.load_data(ROWS, TOKENIZER, validation=ROWS[:2], test=TEST_ROWS))
    assert [len(split) for split in expected.values()] == [12, 2, 3]
    for source, settings in (
        ({"train": ROWS, "validation": ROWS[:2], "test": TEST_ROWS}, {}),
        ({"train": ROWS, "dev": part.select([0, 1]), "test": Path(file)}, {}),
        (datasets.DatasetDict(train=part, valid=part.select([0, 1]), unused=part), {"test": file}),
        (
            {"train": ROWS, "validation": ROWS[:5], "test": TEST_ROWS},
            {"validation": datasets.DatasetDict(dev=part.select([0, 1]))},
        ),
        (ROWS, {"validation": {"validation": ROWS[:2], "train": ROWS}, "test": {"test": TEST_ROWS}}),
    ):
        assert tokens(peftly.load_data(source, TOKENIZER, **settings)) == expected


def test_the_settings_of_a_config_and_keyword_arguments_are_the_same():
    settings = {"template": "{text} is", "target": "label", "max_length": 9, "validation_fraction": 0.3, "seed": 4}
    file = json_lines("rows.jsonl", ROWS)
    expected = peftly.load_data(DataConfig(train=file, **settings), TOKENIZER)
    assert peftly.load_data(file, TOKENIZER, **settings) == expected
    assert tokens(peftly.load_data(ROWS, TOKENIZER, **settings)) == tokens(expected)
    assert tokens(expected) != tokens(peftly.load_data(file, TOKENIZER))


def test_the_defaults_are_those_of_the_config():
    parameters = inspect.signature(peftly.load_data).parameters
    settings = {name: field.default for name, field in DataConfig.model_fields.items() if name != "train"}
    assert {name: parameters[name].default for name in settings} == settings
    assert set(parameters) == {"source", "tokenizer", "task", *settings}
    assert [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY] == ["source", "tokenizer"]


def test_the_task_of_a_classifier():
    data = peftly.load_data(ROWS, TOKENIZER, task="sequence_classification")
    assert data.row_format.template == "{text}"
    assert {encoded.label for encoded in data.train.encoded} == {0, 1}
    assert peftly.load_data(ROWS, TOKENIZER, task="causal_lm") == peftly.load_data(ROWS, TOKENIZER)


def test_the_report_of_rows_in_memory():
    report = peftly.load_data(ROWS, TOKENIZER, test=ROWS[:1]).report
    counts = report.splits["train"]
    assert report.lines()[0] == (
        f"train: 11 rows, {counts.tokens} tokens, {counts.trained_tokens} of them trained (no: 8, yes: 3)"
    )
    assert "validation is 1 row taken from train by seed 0" in report.notes
    assert any("as train: row " in sample for _, finding in report.findings for sample in finding.samples)
    notes = peftly.load_data({"train": ROWS, "dev": ROWS[:1]}, TOKENIZER).report.notes
    assert notes[0] == "validation is the split 'dev'"


def test_a_test_split_without_labels_is_left_out_unless_it_was_asked_for():
    unlabelled = [{"text": "a", "label": None}]
    data = peftly.load_data({"train": ROWS, "test": unlabelled}, TOKENIZER)
    assert data.test is None
    assert "test has no value in 'label', so it is no test split" in data.report.notes
    assert refusal(ROWS, test=unlabelled).startswith("test: no trained token is left in any of 1 row: 1 × row dropped")


def test_the_only_split_of_a_data_set_is_not_used_twice():
    data = peftly.load_data(datasets.DatasetDict(test=with_class_labels()), TOKENIZER, validation_fraction=0)
    assert (len(data.train.examples), data.validation, data.test) == (12, None, None)


def test_rows_in_memory_are_not_changed():
    rows = [dict(row) for row in ROWS]
    data = with_class_labels()
    peftly.load_data(rows, TOKENIZER)
    peftly.load_data(data, TOKENIZER)
    assert rows == ROWS
    assert data[0]["label"] == 1


def test_a_file_that_is_named_twice_is_read_once(monkeypatch):
    calls = []
    read = sources.read
    monkeypatch.setattr(sources, "read", lambda source: calls.append(source) or read(source))
    file = json_lines("rows.jsonl", ROWS)
    data = peftly.load_data(file, TOKENIZER, validation=Path(file), test={"test": file})
    assert calls == [file]
    assert data.train.encoded == data.validation.encoded == data.test.encoded
    raw = read_data(DataConfig(train=file))
    assert raw.target_kind() == "labels"
    raw.format("causal_lm").encode(TOKENIZER)
    assert calls == [file] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS[:2], {"text": "a"}], "train: row 3 has no field 'label'; it has 'text'"),
        ([*ROWS[:2], {"text": 5, "label": "no"}], "train: row 3: field 'text' holds a number where a text is needed"),
        ([*ROWS[:2], "late"], "train: row 3 is a text; every row must be an object with named fields"),
        (["late"], "train: row 1 is a text; every row must be an object with named fields"),
        ([{1: "a"}], "train: row 1 is an object without named fields; every row must be an object with named fields"),
        (
            [{"text": "a\ud83d", "label": "no"}],
            "train: row 1 holds half of a character (\\ud83d); write both halves or neither",
        ),
        ([], "train: holds no rows; there is nothing to train on"),
        ({"train": []}, "train: holds no rows; there is nothing to train on"),
        ({"train": datasets.Dataset.from_list([])}, "train: holds no rows; there is nothing to train on"),
        (
            {"train": ROWS, "dev": [{"text": "a"}]},
            "dev: the validation rows have no field 'label', which the training rows have; they have 'text': give "
            "other rows with --validation, or --validation none",
        ),
        (
            datasets.DatasetDict(a=with_class_labels(), b=with_class_labels()),
            "train: has the splits 'a', 'b', none of them 'train'",
        ),
    ],
)
def test_a_bad_row_in_memory_is_named(rows, message):
    assert refusal(rows) == message


def test_a_bad_row_of_another_split_is_named():
    assert refusal(ROWS, validation=[*ROWS[:2], {"text": "a"}]) == (
        "validation: row 3 has no field 'label'; it has 'text'"
    )
    assert refusal(ROWS, test=["late"]).startswith("test: row 1 is a text")
    assert refusal(ROWS, test={"dev": ["late"]}).startswith("test [dev]: row 1 is a text")


KINDS = (
    "expected a file, a folder or a Hub id, a list of rows (dicts), a datasets.Dataset or DatasetDict, a "
    "pandas.DataFrame, or a mapping of split names to these"
)
NAMES = "expected the names of splits: 'train', 'validation', 'valid', 'dev', 'test'"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, f"the source of the train rows is a number; {KINDS}"),
        (b"rows.jsonl", f"the source of the train rows is a bytes; {KINDS}"),
        ({"rows.jsonl"}, f"the source of the train rows is a set; {KINDS}"),
        ({}, f"the source of the train rows is a mapping with none; {NAMES}"),
        ({"text": ["a"], "label": ["b"]}, f"the source of the train rows is a mapping with 'text', 'label'; {NAMES}"),
        ({"trian": ROWS}, f"the source of the train rows is a mapping with 'trian'; {NAMES}"),
        ({"dev": ROWS}, "the source of the train rows is a mapping with 'dev', and 'train' is missing"),
        ({"train": 7}, f"the source of the train rows is a number; {KINDS}"),
        ("nothing.jsonl", "nothing.jsonl: no such file or folder (looked from "),
    ],
)
def test_a_source_of_the_wrong_kind(source, message):
    assert refusal(source).startswith(message)


def test_a_setting_of_the_wrong_kind():
    assert refusal(ROWS, validation=7).startswith("the source of the validation rows is a number; expected a file")
    assert refusal(ROWS, max_length=1) == "max_length=1: Input should be greater than or equal to 2"
    assert refusal(ROWS, seed="x").startswith("seed='x': Input should be a valid integer")
    assert refusal(ROWS, task="classification").startswith("task 'classification' is not known; known are 'causal_lm',")
    assert refusal(ROWS, "gpt2") == (
        "tokenizer is a text; give a tokenizer of transformers, such as load_base(...).tokenizer"
    )
    config = DataConfig(train=json_lines("rows.jsonl", ROWS))
    assert refusal(config, max_length=9) == ("a DataConfig is given, and 'max_length' too; set them in the DataConfig")
    with pytest.raises(ConfigError, match="maxlength=9: Extra inputs are not permitted"):
        read_data(ROWS, maxlength=9)


INSTALL = "need the package datasets: pip install 'peftly[datasets]'"


@pytest.fixture
def without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)


def test_without_the_package_datasets_the_message_says_what_to_install(without_datasets):
    Path("folder").mkdir()
    Path("rows.parquet").write_text("PAR1")
    assert refusal("someone/tweets") == f"someone/tweets: no such file or folder, and data sets on the Hub {INSTALL}"
    assert refusal("folder") == f"folder: folders of save_to_disk {INSTALL}"
    assert refusal("rows.parquet") == (
        "rows.parquet: Parquet files need the package pyarrow: pip install 'peftly[datasets]'"
    )
    assert refusal(object()).startswith("the source of the train rows is a object; expected")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "memory"])
def test_files_and_lists_need_no_package_datasets(without_datasets, name):
    Path("rows.json").write_text(json.dumps(ROWS))
    json_lines("rows.jsonl", ROWS)
    csv_file()
    data = peftly.load_data(ROWS if name == "memory" else name, TOKENIZER, test=TEST_ROWS)
    assert [len(split.examples) for split in (data.train, data.validation, data.test)] == [11, 1, 3]


def test_files_and_lists_import_no_package_datasets():
    json_lines("rows.jsonl", ROWS)
    code = (
        "import sys; sys.modules.update(datasets=None, pyarrow=None); import peftly.data as data; "
        "raw = data.read_data('rows.jsonl', test=[{'text': 'a', 'label': 'no'}]); "
        "print(raw.format('causal_lm').row_format.kind)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "label", done.stderr


def test_from_rows_to_a_trained_adapter_in_ten_lines(tiny_llama_folder):
    rows = [
        {"text": "third day of waiting, where is my order?", "label": "complaint"},
        {"text": "thanks for the quick help", "label": "no complaint"},
    ]
    model, tokenizer = peftly.load_base(str(tiny_llama_folder))
    data = peftly.load_data(rows, tokenizer, max_length=64, validation_fraction=0)
    peftly.attach(model, peftly.LoRA(rank=4))
    result = peftly.train(model, data, peftly.TrainConfig(epochs=40), tokenizer=tokenizer, learning_rate=1e-2)
    peftly.save_adapter(model, "adapter")
    assert Path("adapter/adapter_config.json").is_file()
    assert result.history[-1].loss < 0.5 * result.history[0].loss


def test_spaces_between_prompt_and_completion_are_said_with_the_setting():
    tokenizer = family("byte_level")

    def loaded(rows, **settings):
        data = load_data(rows, tokenizer, validation_fraction=0.0, **settings)
        texts = {tokenizer.decode(encoded.input_ids, skip_special_tokens=True) for encoded in data.train.encoded}
        return texts, [note for note in data.report.notes if "add_space" in note]

    urls = [{"prompt": f"see https://example.org/{n}/", "completion": "index.html"} for n in range(2)]
    assert loaded(urls) == ({f"see https://example.org/{n}/index.html" for n in range(2)}, [])
    code = [{"prompt": f"def area{n}(width):\n    retu", "completion": "rn width"} for n in range(2)]
    texts, notes = loaded(code)
    assert texts == {f"def area{n}(width):\n    return width" for n in range(2)}
    assert notes == [
        "2 completions joined to the last word of the prompt, as written (first: "
        "'ea0(width):\\n    retu' + 'rn width'); --set data.add_space=true adds a space"
    ]
    texts, notes = loaded(code, add_space=True)
    assert texts == {f"def area{n}(width):\n    retu rn width" for n in range(2)}
    assert "2 completions got a space in front" in notes[0]
    sums = [{"q": f"what is {n} plus 1", "a": f"{n + 1}"} for n in range(2)]
    texts, notes = loaded(sums, template="{q} Answer:", target="a")
    assert texts == {f"what is {n} plus 1 Answer: {n + 1}" for n in range(2)}
    assert "2 completions got a space in front" in notes[0]
    texts, notes = loaded(sums, template="{q} Answer:", target="a", add_space=False)
    assert (texts, notes) == ({f"what is {n} plus 1 Answer:{n + 1}" for n in range(2)}, [])
    assert loaded(sums, template="<q>{q}</q><a>", target="a")[1] == []
    moods = [{"text": f"late {n}", "label": "no" if n % 2 else "yes"} for n in range(2)]
    texts, notes = loaded(moods, template="{text} Mood :")
    assert texts == {"late 0 Mood : yes", "late 1 Mood : no"}
    assert notes == ["labels get a space in front (first: ' Mood : no'); --set data.add_space=false leaves it out"]
    assert loaded(moods, template="<a>{text}</a><b>") == ({"<a>late 0</a><b>yes", "<a>late 1</a><b>no"}, [])
    assert loaded(moods)[1] == []
