"""Files and folders that appear complete or not at all."""

import errno
import json
import math
from pathlib import Path

import pytest

from peftly.errors import ConfigError
from peftly.utils.atomic import folder_bytes, is_disk_full, json_values, write_folder, write_json, write_text


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_replaces_the_earlier_one(tmp_path):
    for name in ("first", "second"):
        with write_folder(tmp_path / "new" / "out") as folder:
            (folder / name).write_text(name)
            assert not (tmp_path / "new" / "out" / name).exists()
    assert names_in(tmp_path) == ["new", "new/out", "new/out/second"]


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full and .*out was not written"),
        (RuntimeError("os error: Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "out was not written: Permission denied"),
    ],
)
def test_an_error_leaves_everything_as_it_was(error, message, is_there, tmp_path):
    out = tmp_path / "new" / "out"
    if is_there:
        out.mkdir(parents=True)
        (out / "earlier").touch()
    before = names_in(tmp_path)

    def write():
        with write_folder(out) as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(ConfigError, match=message):
        write()
    assert names_in(tmp_path) == before


def test_a_folder_that_cannot_be_moved_leaves_the_earlier_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").touch()
    rename = Path.rename

    def refuse(source, target):
        if (source.name, target) == ("new", out):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ConfigError, match="was not written: Device or resource busy"), write_folder(out):
        pass
    assert names_in(tmp_path) == ["out", "out/earlier"]


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


def test_a_text_that_cannot_be_written_spares_the_earlier_one(tmp_path):
    write_text(tmp_path / "a.txt", "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "second \ud800")
    assert (tmp_path / "a.txt").read_text() == "first"


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
