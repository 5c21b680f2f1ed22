"""CSV and TSV files as programs and people write them: separators, quote signs, headers, encodings."""

import csv
import io
from pathlib import Path

import pytest

from peftly.data import read
from peftly.data.rows import Rows
from peftly.errors import DataError

TEXTS = ["fine", '"It works."', "a, b; c", 'said "yes"', "plain"]


def read_file(folder: Path, name: str, content: str | bytes) -> Rows:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(str(path))[""]


def notes(rows: Rows) -> list[str]:
    return [note.removeprefix(f"{rows.name}: ") for note in rows.notes]


def written(texts: list[str], quoting: int, separator: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
    writer.writerows([["text", "label"], *([text, "x"] for text in texts)])
    return file.getvalue()


# --- quote signs in tab-separated files


@pytest.mark.parametrize("stray", ['"start', 'end"', 'in "the" middle', '"', '"whole"', '"a" and "b"', '""'])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_quote_signs_of_a_tab_file_are_text(tmp_path, stray, count):
    texts = [stray if index in (1, 3, 4)[:count] else f"text {index}" for index in range(6)]
    rows = read_file(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts))
    assert [row["text"] for row in rows.rows] == texts
    said = [] if stray in ('end"', 'in "the" middle') else ["quote signs are part of the texts"]
    assert notes(rows) == said


@pytest.mark.parametrize(
    ("texts", "quoting"),
    [
        (TEXTS, csv.QUOTE_MINIMAL),
        (TEXTS, csv.QUOTE_ALL),
        (["fine", "plain"], csv.QUOTE_ALL),
        (["fine", "a\tb"], csv.QUOTE_MINIMAL),
        (["fine", "a\nb", 'c "d"'], csv.QUOTE_MINIMAL),
        (["", "a\n\nb\tc"], csv.QUOTE_MINIMAL),
    ],
)
def test_a_tab_file_that_a_program_has_quoted(tmp_path, texts, quoting):
    rows = read_file(tmp_path, "a.tsv", written(texts, quoting, "\t"))
    assert [row["text"] for row in rows.rows] == texts
    assert notes(rows) == ["quote signs around a cell are left out"]


def test_a_tab_file_of_a_spreadsheet_that_quotes_commas(tmp_path):
    rows = read_file(tmp_path, "a.tsv", 'text\tlabel\r\n"a, b"\tx\r\nc\ty\r\n')
    assert [row["text"] for row in rows.rows] == ["a, b", "c"]


def test_a_tab_file_with_a_short_line_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.tsv: line 3 has 1 fields where the header has 2 \(text, label\)$"):
        read_file(tmp_path, "a.tsv", 'text\tlabel\n"a\tx\nb\nc"d\tx\n')


def test_rows_of_a_csv_file_that_a_stray_quote_sign_joins_are_reported(tmp_path):
    rows = read_file(tmp_path, "a.csv", 'text,label\n"never dull,1\nflat,0\nthe end",0\n"a\nb",1\nc,0\n')
    assert len(rows) == 3
    assert notes(rows) == [
        "quote signs make one row of lines that each look like a row; is a quote sign misplaced? 1 of 3 rows (first: "
        "lines 2 to 4)"
    ]


# --- separators and encodings

ROWS = [{"text": "good, fair", "label": "1"}, {"text": "né", "label": "0"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("separator", "name", "said"),
    [
        (",", "a.csv", []),
        (";", "a.csv", ["the separator is ';'"]),
        ("\t", "a.csv", ["the separator is '\\t'"]),
        ("|", "a.csv", ["the separator is '|'"]),
        ("\t", "a.tsv", []),
        (";", "a.tsv", ["the separator is ';'"]),
    ],
)
def test_separators(tmp_path, separator, name, said, encoding):
    content = written(["good, fair", "né"], csv.QUOTE_MINIMAL, separator)
    rows = read_file(tmp_path, name, content.encode(encoding))
    assert [row["text"] for row in rows.rows] == ["good, fair", "né"]
    assert notes(rows) == said


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "\ufeffsep=;\n"])
def test_the_line_that_names_the_separator(tmp_path, first):
    rows = read_file(tmp_path, "a.csv", f"{first}text;label\na,b;x\n\nc;y\n")
    assert list(rows.rows) == [{"text": "a,b", "label": "x"}, {"text": "c", "label": "y"}]
    assert rows.location(1).endswith("line 5")


def test_another_separator_in_one_line_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"line 3 has 1 fields where the header has 2 \(text, label; separated by ';'\)$"
    ):
        read_file(tmp_path, "a.csv", "text;label\na;x\nb\n")


def test_json_lines_in_utf_16(tmp_path):
    content = '{"text": "né"}\r\n{"text": "b"}\r\n'
    for encoding in ("utf-16", "utf-16-le"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        rows = read_file(tmp_path, "a.jsonl", (mark + content).encode(encoding))
        assert [row["text"] for row in rows.rows] == ["né", "b"]
        assert rows.location(1).endswith("line 2")
    assert read_file(tmp_path, "a.json", '[{"text": "né"}]'.encode("utf-16")).rows == [{"text": "né"}]


# --- files that `cat` joined


def test_a_repeated_header_is_no_row(tmp_path):
    content = "\ufefftext,label\r\na,x\r\n\ufefftext,label\r\nb,y\r\ntext,label\r\n"
    rows = read_file(tmp_path, "a.csv", content)
    assert [row["label"] for row in rows.rows] == ["x", "y"]
    assert notes(rows) == ["2 lines repeat the header, left out (first: line 3)"]
    rows = read_file(tmp_path, "a.tsv", "text\tlabel\na\tx\ntext\tlabel\n")
    assert notes(rows) == ["1 line repeats the header, left out (first: line 3)"]


def test_a_header_in_another_order_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 3 has the names of the header in another order \(label, text\)"):
        read_file(tmp_path, "a.csv", "text,label\na,x\nlabel,text\ny,b\n")


def test_a_word_of_the_header_can_be_a_row(tmp_path):
    rows = read_file(tmp_path, "a.csv", "text\na\ntext\n")
    assert [row["text"] for row in rows.rows] == ["a", "text"]


def test_joined_json_lines_have_a_byte_order_mark_inside(tmp_path):
    rows = read_file(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\ufeff{"a": 2}\n')
    assert list(rows.rows) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}{"a": 2}\n', "line 1 holds a second value at column 9; start a new line for each row"),
        ("a.jsonl", '{"a": 1}\n[{"a": 2}]\n', "line 2 is a list; every line must be an object with named fields"),
        (
            "a.json",
            '[{"a": 1}]\n[{"a": 2}]\n',
            "line 2 begins a second list; give joined files one by one (--data a.json --data b.json)",
        ),
    ],
)
def test_joined_json_files_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read_file(tmp_path, name, content)
    assert str(caught.value).endswith(message)


# --- headers


def test_columns_without_a_name_are_left_out(tmp_path):
    rows = read_file(tmp_path, "a.csv", ",text, label ,\n0,a,x,\n1,b,y,z\n")
    assert list(rows.rows) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert notes(rows) == ["not used, since the header has no name for it: column 1, 4"]


@pytest.mark.parametrize("header", ["text,text", "text, text"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, header):
    with pytest.raises(DataError, match=r"the header names a field twice \(text, text\)"):
        read_file(tmp_path, "a.csv", f"{header}\na,b\n")


def test_a_quote_sign_that_is_never_closed_is_named_by_its_line(tmp_path):
    rows = "".join('"text 5,x\n' if number == 5 else f"text {number},x\n" for number in range(30))
    reason = r"the row in lines 7 to 31, which a quote sign joins, is not valid CSV \(unexpected end of data\)"
    with pytest.raises(DataError, match=reason):
        read_file(tmp_path, "a.csv", "text,label\n" + rows)


# --- blanks


@pytest.mark.parametrize(
    "content",
    [
        '"text", "label"\n"fine, yes", "good"\n"no", "bad"\n',
        'text, label\n"fine, yes", "good"\n no,  "bad"\n',
        'text; label\n "fine, yes";"good"\nno; bad\n',
    ],
)
def test_quote_signs_behind_a_blank_are_quote_signs(tmp_path, content):
    rows = read_file(tmp_path, "a.csv", content)
    assert list(rows.rows) == [{"text": "fine, yes", "label": "good"}, {"text": "no", "label": "bad"}]
    assert notes(rows)[-1] == "blanks behind a separator are left out, since quote signs follow some of them"


@pytest.mark.parametrize("text", ['"say, ""no"", and go"', '" ""no"", and go"', ' "no" is no', "a, b"])
def test_blanks_stay_where_no_cell_is_quoted_behind_one(tmp_path, text):
    cells = [text, " x"] if text != "a, b" else text.split(",")
    rows = read_file(tmp_path, "a.csv", "text,label\n" + ",".join(cells) + "\n")
    expected = text[1:-1].replace('""', '"') if text.startswith('"') else cells[0]
    assert list(rows.rows) == [{"text": expected, "label": cells[1]}]
    assert notes(rows) == []


def test_a_line_of_blanks_is_no_row(tmp_path):
    rows = read_file(tmp_path, "a.csv", "text,label\na,x\n  \n\t\nb,y\n   ")
    assert list(rows.rows) == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert rows.location(1) == f"{rows.name}: line 5"
