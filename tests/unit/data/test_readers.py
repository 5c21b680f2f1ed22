import csv
import io
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import read
from peftly.errors import DataError

ROWS = [{"text": 'said "late",\nagain', "label": "yes"}, {"text": "naïve {x} 🙂 \u2028 end", "label": "no"}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def as_csv(rows: list[dict[str, str]], delimiter: str = ",", **options: object) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def only(source: str) -> list[dict[str, object]]:
    splits = read(source)
    assert list(splits) == [""]
    return splits[""].rows


def refusal(source: str) -> str:
    with pytest.raises(DataError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def json_lines(rows: list[dict[str, str]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines(ROWS)),
        ("a.jsonl", json_lines(ROWS) + "\n"),
        ("a.jsonl", "\ufeff" + json_lines(ROWS).replace("\n", "\r\n\r\n  \r\n")),
        ("a.ndjson", json_lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=1)),
        ("a.json", "\ufeff" + json.dumps({"version": 1, "data": ROWS}, indent=1)),
        ("a.json", json_lines(ROWS)),
        ("a.csv", as_csv(ROWS)),
        ("a.csv", "\ufeff" + as_csv(ROWS, lineterminator="\n")),
        ("A.CSV", "\n" + as_csv(ROWS, quoting=csv.QUOTE_ALL) + "\n\n"),
        ("a.tsv", as_csv(ROWS, "\t")),
    ],
)
def test_text_files(here, name, content):
    assert only(write(name, content)) == ROWS


@given(
    st.lists(
        st.fixed_dictionaries(
            {"a": st.text(st.characters(codec="utf-8", exclude_characters="\0")), "b": st.text("x,\"'\n\r; ")}
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=40)
def test_every_text_survives_csv_and_json_lines(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows", numbered=True)
    write(str(folder / "a.csv"), as_csv(rows, quoting=csv.QUOTE_ALL))
    write(str(folder / "a.jsonl"), json_lines(rows))
    assert only(str(folder / "a.csv")) == rows
    assert only(str(folder / "a.jsonl")) == rows


def test_a_csv_text_can_be_long_and_is_never_converted(here):
    rows = [{"text": "x" * 300_000, "label": "1"}, {"text": "NA", "label": "007"}, {"text": "", "label": "true"}]
    limit = 1000
    csv.field_size_limit(limit)
    assert only(write("a.csv", as_csv(rows))) == rows
    assert csv.field_size_limit(131_072) == limit


def test_parquet_and_its_class_names(here):
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    pyarrow.parquet.write_table(table, "plain.parquet")
    assert only("plain.parquet")[0] == {"text": "a", "label": 1}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features).to_parquet(
        "n.parquet"
    )
    assert [row["label"] for row in only("n.parquet")] == ["yes", "no", None]


def test_a_datasets_folder_with_and_without_splits(here):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    part.save_to_disk("one")
    assert only("one") == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    datasets.DatasetDict(train=part, test=part.select([1])).save_to_disk("two")
    splits = read("two")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 1}
    assert splits["test"].location(0) == "two [test]: row 1"


def test_a_data_set_on_the_hub(here, monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("someone/tweets-2.0")["train"].rows == ROWS
    assert asked == [("someone/tweets-2.0", {})]  # and nothing that would allow remote code


def test_a_hub_id_that_does_not_exist(here, monkeypatch):
    def load_dataset(name, **options):
        raise FileNotFoundError("Couldn't find it.\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("peftly.data.hub.hub_answers", lambda: True)
    assert refusal("someone/tweets") == (
        "someone/tweets: no such file or folder, and the Hub gives no data set of that name (Couldn't find it)"
    )


def test_a_hub_that_does_not_answer_is_the_reason_and_its_cache_is_read(here, monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("peftly.data.hub.hub_answers", lambda: False)
    message = refusal("someone/tweets")
    assert message.startswith("someone/tweets: no such file or folder, and the Hub does not answer: check the network")
    assert "HF_ENDPOINT" in message
    assert (asked, constants.HF_HUB_OFFLINE) == ([True], False)


def test_a_csv_file_of_excel_on_chinese_windows_is_refused_with_the_command_that_converts_it(here):
    file = Path("my reviews.csv")
    file.write_bytes("review,label\n很好看的电影，推荐,1\n".encode("gbk"))
    message = refusal(str(file))
    assert message.startswith("my reviews.csv: line 2 is not UTF-8 text")
    assert message.endswith("iconv -f GBK -t UTF-8 'my reviews.csv' > utf8.csv")


@pytest.mark.parametrize(
    "source", ["tweets.jsonl", "data/tweets.csv", "/data/tweets", "tweets.txt", "there/tweets", "a b"]
)
def test_a_missing_file_is_not_looked_for_on_the_hub(here, monkeypatch, source):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    Path("there").mkdir()
    assert refusal(source) == f"{source}: no such file or folder (looked from {here})"


HALF = "holds half of a character (\\ud83d); write both halves or neither"
GOOD = '{"text": "a"}\n' * 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tweets.jsonl", GOOD + '{"text": "a"\n', "line 7 is not valid JSON (Expecting ',' delimiter, column 13)"),
        ("t.jsonl", '\n\r\n{"a": 1}\nnull\n', "line 4 is null; every line must be an object with named fields"),
        ("t.jsonl", "[1]", "line 1 is a list; every line must be an object with named fields"),
        (
            "t.jsonl",
            b'{"a": 1}\n{"a": "\xff"}',
            "line 2 is not UTF-8 text (invalid start byte); save the file as UTF-8 (Excel: as 'CSV UTF-8')",
        ),
        ("t.jsonl", "", "the file is empty"),
        ("t.jsonl", " \n\n", "holds no rows; there is nothing to train on"),
        ("t.jsonl", '{"a": "\\ud83d\\ude00"}\n{"a": "\\uD83D!"}', f"line 2 {HALF}"),
        ("t.json", '[{"a": "\\ud83d!"}]', f"row 1 {HALF}"),
        ("t.json", "", "the file is empty"),
        ("t.json", "\n", "holds no rows; there is nothing to train on"),
        ("t.json", "[]", "holds no rows; there is nothing to train on"),
        ("t.json", '[{"a": 1},\n {"a" 1}]', "line 2 is not valid JSON (Expecting ':' delimiter, column 7)"),
        ("t.json", '[{"a": 1}, 5]', "row 2 is a number; every row must be an object with named fields"),
        ("t.json", '"x"', 'holds a text; expected a list of rows or {"data": [rows]}'),
        ("t.json", '{"rows": []}', "an object with 'rows'; expected a list of rows or {\"data\": [rows]}"),
        (
            "t.json",
            GOOD + "{",
            "line 7 is not valid JSON (Expecting property name enclosed in double quotes, column 2)",
        ),
        ("t.csv", "text,label\n", "holds no rows; there is nothing to train on"),
        ("t.csv", 'text,label\n"a\nb",x\nc\n', "line 4 has 1 fields where the header has 2 (text, label)"),
        ("t.csv", 'text,label\n"a" b,x\n', "line 2 is not valid CSV (',' expected after '\"')"),
        ("t.csv", 'text,label\n"a,x\n', "line 2 is not valid CSV (unexpected end of data)"),
        ("t.csv", "text,text\na,b\n", "the header names a field twice (text, text)"),
        (
            "t.csv",
            b"text,label\n\xff,x\n",
            "line 2 is not UTF-8 text (invalid start byte); save the file as UTF-8 (Excel: as 'CSV UTF-8')",
        ),
        (
            "t.jsonl",
            '{"text": "a", "label": "x", "label": "y"}',
            "line 1 is not valid JSON (an object has two values for 'label')",
        ),
        ("t.json", '[{"a": {"b": 1, "b": 2}}]', "not valid JSON (an object has two values for 'b')"),
        ("t.jsonl", '{"a": 1},\n{"a": 2},\n', "line 1 ends with a comma; no comma belongs between the lines"),
        (
            "t.gz",
            "x",
            "files that end in '.gz' are not read (unpack the file); known are .jsonl .ndjson .json .csv .tsv .parquet",
        ),
        (
            "t.xlsx",
            "x",
            "files that end in '.xlsx' are not read (save the sheet as .csv); known are "
            ".jsonl .ndjson .json .csv .tsv .parquet",
        ),
        ("tweets", "x", "the name's ending says no format; known are .jsonl .ndjson .json .csv .tsv .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(here, name, content, message):
    assert refusal(write(name, content)) == f"{name}: {message}"


def test_one_value_that_is_written_twice_is_one_value(here):
    assert list(only(write("t.jsonl", '{"text": "a", "text": "a"}'))) == [{"text": "a"}]


def test_a_folder_of_data_files_is_refused_with_the_option_to_type(here):
    Path("my rows").mkdir()
    write("my rows/test.jsonl", '{"text": "a"}\n')
    write("my rows/train.jsonl", '{"text": "b"}\n')
    message = refusal("my rows")
    assert "2 files of rows; give the files, such as --data 'my rows/train.jsonl'" in message
    assert list(only("my rows/train.jsonl")) == [{"text": "b"}]


def test_damaged_binary_files(here):
    assert refusal(write("t.parquet", "PAR1 nothing")).startswith("t.parquet: not a readable Parquet file (")
    Path("folder").mkdir()
    assert refusal("folder").startswith("folder: not a folder written by datasets' save_to_disk (")
    deep = refusal(write("t.jsonl", '{"a": ' + "[" * 100_000))
    assert deep.startswith("t.jsonl: line 1 is not valid JSON (")


def test_the_location_of_a_row(here):
    rows = read(write("t.csv", 'text,label\n"a\nb",x\n\nc,y\n'))[""]
    assert [rows.location(index) for index in range(2)] == ["t.csv: line 2", "t.csv: line 5"]
    rows = read(write("t.jsonl", '\n{"a": 1}\n\n{"b": 1}\n'))[""]
    assert [rows.location(index) for index in range(2)] == ["t.jsonl: line 2", "t.jsonl: line 4"]
    assert rows.fields == ["a", "b"]
    assert read(write("t.json", "[{}, {}]"))[""].location(1) == "t.json: row 2"
