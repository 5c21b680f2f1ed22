"""Text files that appear complete or not at all."""

import errno
import json
import math

import pytest

from peftly.utils import file_changes
from peftly.utils.atomic import folder_bytes, is_disk_full, json_values, write_json, write_text


@pytest.mark.parametrize("change", ["write_new_file", "move"])
def test_a_text_that_cannot_be_written_spares_the_earlier_one(change, tmp_path, monkeypatch):
    def full(made, _path):
        if made == change:
            raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "a.txt", "first")
    monkeypatch.setattr(file_changes, "before_change", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "first")]


def test_json_has_no_infinity_and_no_tuples(tmp_path):
    content = {"a": (1, 2), "b": math.inf, "c": [math.nan, -math.inf], "d": {"é": None}}
    assert json_values(content) == {"a": [1, 2], "b": None, "c": [None, None], "d": {"é": None}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == json_values(content)
    assert "é" in (tmp_path / "a.json").read_text()
    assert folder_bytes(tmp_path) == (tmp_path / "a.json").stat().st_size


def test_which_errors_report_a_full_disk():
    assert is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
