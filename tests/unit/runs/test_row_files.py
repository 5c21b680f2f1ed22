"""Rows to files."""

import json
import math

import pytest

from peftly.data import read
from peftly.errors import DataError
from peftly.runs.row_files import check_row_file, write_rows

ROWS = [
    {"text": 'tab\tquote "x", line\nbreak', "label": "投诉", "score": 0.25, "tags": ["O", None]},
    {"text": "很好", "label": None, "score": None, "tags": []},
]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_rows_are_read_as_they_were_written(ending, tmp_path):
    file = tmp_path / f"rows.{ending}"
    write_rows(file, ROWS, list(ROWS[0]))
    found = list(read(str(file))[""].rows)
    if ending in ("csv", "tsv"):
        cells = [
            {name: row[name] if isinstance(row[name], str) else json.dumps(row[name]) for name in row} for row in ROWS
        ]
        assert found == [{name: "" if cell == "null" else cell for name, cell in row.items()} for row in cells]
    else:
        assert found == ROWS
    if ending != "parquet":
        assert "投诉" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("text", ["old\rMac", "Windows\r\nlines", '"', "a,b;c|d", "=1+1", " x ", "\\"])
def test_cells_of_tables_stay_in_their_row(ending, text, tmp_path):
    rows = [{"id": "1", "text": text, "prediction": "a"}, {"id": "2", "text": "很好", "prediction": text}]
    file = tmp_path / f"rows.{ending}"
    write_rows(file, rows, list(rows[0]))
    assert list(read(str(file))[""].rows) == rows


def test_a_number_that_json_lacks_becomes_null(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"text": "很", "score": math.nan}], ["text", "score"])
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == '{"text": "很", "score": null}\n'


@pytest.mark.parametrize(
    ("name", "message"),
    [("rows.xlsx", "known are .jsonl"), ("rows", "known are"), (".", "is a folder|says the format")],
)
def test_a_file_of_no_format_is_refused(name, message, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=message):
        check_row_file(tmp_path / name)
