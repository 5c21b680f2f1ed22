"""Odd data files: the right rows, or one DataError that names the file."""

import json
import os
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from peftly.data import read
from peftly.data.templates import Template
from peftly.errors import DataError

LONG = "x" * 1_000_000
ROW = '{"text": "a", "label": "b"}\n'


def rows_in(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = read(str(file))[""]
    return [dict(row) for row in rows.rows]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "\ufeff" + ROW.replace("\n", "\r\n") * 2, [{"text": "a", "label": "b"}] * 2),
        ("a.jsonl", json.dumps({"text": LONG + "\0\u001b"}), [{"text": LONG + "\0\u001b"}]),
        ("a.jsonl", '{"text": "b", "text": "b"}', [{"text": "b"}]),
        (
            "a.jsonl",
            '{"text": "a", "x": 1e400, "y": -Infinity}',
            [{"text": "a", "x": float("inf"), "y": float("-inf")}],
        ),
        ("a.json", '\ufeff{"data": [{"text": "a"}]}', [{"text": "a"}]),
        ("a.csv", f"text,label\n{LONG},\0b\n", [{"text": LONG, "label": "\0b"}]),
        ("a.csv", "\ufefftext,label\r\n\r\na,b\r\n", [{"text": "a", "label": "b"}]),
        ("a.csv", "text,label\ra,b\r", [{"text": "a", "label": "b"}]),
        ("a.csv", 'text,label\n"a\n,""b""",c\n', [{"text": 'a\n,"b"', "label": "c"}]),
    ],
    ids=range(9),
)
def test_the_right_rows(tmp_path, name, content, expected):
    assert rows_in(tmp_path, name, content) == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", ROW + "[" * 100_000, "line 2 is not valid JSON"),
        ("a.jsonl", ROW + '{"a":' * 100_000, "line 2 is not valid JSON"),
        ("a.jsonl", ROW + '{"text": ' + "9" * 100_000 + "}", "line 2 is not valid JSON"),
        ("a.jsonl", ROW + "\0", "line 2 is not valid JSON"),
        ("a.jsonl", ROW + '{"text": "a\tb"}', "line 2 is not valid JSON"),
        ("a.jsonl", ROW.encode("utf-16") + b"x", "not UTF-16 text"),
        ("a.jsonl", ROW + '{"text": "\\udc00"}', "line 2 holds half of a character"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", "[1, 2]", "row 1 is a number"),
        ("a.json", "9" * 100_000, "not valid JSON"),
        ("a.csv", 'text,label\na,b\n"a,b\n', "line 3 is not valid CSV"),
        ("a.csv", 'text,label\na,b\n"a"x,b\n', "line 3 is not valid CSV"),
        ("a.csv", "text,label\na,b\na,b,c\n", "line 3 has 3 fields where the header has 2"),
        ("a.csv", "text,label\na\n", "line 2 has 1 fields"),
        ("a.csv", "text,text\na,b\n", "names a field twice"),
        ("a.csv", b"text,label\na,b\n\xff,b\n", "line 3 is not UTF-8 text"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "\n\n", "holds no rows"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.parquet", b"PARE" + bytes(100) + b"PARE", "not a readable Parquet file"),
    ],
    ids=range(20),
)
def test_one_error_with_file_and_line(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words) as caught:
        rows_in(tmp_path, name, content)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def parquet_rows(folder, columns, names=None, metadata=None):
    table = pa.table(columns, names=names) if names else pa.table(columns)
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), folder / "a.parquet")
    return [dict(row) for row in read(str(folder / "a.parquet"))[""].rows]


def test_types_of_parquet(tmp_path):
    columns = {
        "text": pa.array(["a", None]).dictionary_encode(),
        "price": pa.array([Decimal("1.50"), None]),
        "bytes": pa.array([b"\xff", b""]),
        "list": pa.array([["a"], []]),
        "nested": pa.array([{"b": {"c": 1}}, None]),
    }
    assert parquet_rows(tmp_path, columns) == [
        {"text": "a", "price": Decimal("1.50"), "bytes": b"\xff", "list": ["a"], "nested": {"b": {"c": 1}}},
        {"text": None, "price": None, "bytes": b"", "list": [], "nested": None},
    ]


@pytest.mark.parametrize(
    "note",
    [b"", b"{", b"[]", b"null", b"1", b'{"info": 1}', b'{"info": {"features": {"label": {"names": [1]}}}}'],
)
def test_an_odd_note_of_class_names_is_ignored(tmp_path, note):
    assert parquet_rows(tmp_path, {"label": [0, 1]}, metadata={"huggingface": note}) == [{"label": 0}, {"label": 1}]


@pytest.mark.parametrize(
    ("columns", "names", "words"),
    [
        ([["a"], ["b"]], ["text", "text"], "two columns have the same name"),
        ([pa.array([2**40], pa.timestamp("s"))], ["when"], "holds a value that cannot be read"),
        ([pa.array([10**9], pa.date32())], ["when"], "holds a value that cannot be read"),
        (
            [pa.array([b"\xff"]).cast(pa.string(), safe=False)] if False else [pa.array([], pa.string())],
            ["text"],
            "holds no rows",
        ),
        ([], None, "holds no rows"),
    ],
    ids=range(5),
)
def test_parquet_that_is_no_data(tmp_path, columns, names, words):
    with pytest.raises(DataError, match=words):
        parquet_rows(tmp_path, columns if names else {}, names)


def test_a_text_of_parquet_that_is_not_utf8(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    with pytest.raises(DataError, match="holds a value that cannot be read"):
        parquet_rows(tmp_path, {"text": broken})


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkfifo("pipe.jsonl")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "locked.csv").symlink_to("/proc/self/mem")
    for source in (
        "pipe",
        "pipe.jsonl",
        "zero.csv",
        "/dev/zero",
        "a\0b.csv",
        "x" * 5000 + ".csv",
        "~nobody-of-that-name/a.csv",
    ):
        with pytest.raises(DataError) as caught:
            read(source)
        assert str(caught.value).startswith(source)


@pytest.mark.parametrize("name", ["text.__class__", "text[0]", "text!r", "text:>999999999999", "0", " text", "prompt"])
def test_a_template_is_no_format_string(name):
    """The text between two braces is the name of a field; nothing is evaluated."""
    template = Template(f"a {{{name}}} b")
    assert template.fields == [name]
    with pytest.raises(DataError, match="names the field"):
        template.check(["text"])
    assert template.render({name: "{x} {0.__class__}"}).text == "a {x} {0.__class__} b"


@pytest.mark.parametrize("mark", ["{prompt:}", "{prompt:99999}", "{prompt:-1}", "{prompt:٣}", "{", "}", "{}", "{a{b}}"])
def test_a_template_that_is_none(mark):
    with pytest.raises(DataError, match="template"):
        Template(f"{{text}} {mark}")
