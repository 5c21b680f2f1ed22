"""Which output folders a command accepts, and with which message it refuses the others."""

import os
from pathlib import Path

import pytest

from peftly.errors import ConfigError
from peftly.utils.output_folder import check_output_folder


def check(path, **changes):
    settings = {"kind": "a run", "is_ours": lambda folder: (folder / "mark").is_file(), "overwrite": False}
    check_output_folder(path, **settings | changes)


def ours(folder, *others):
    folder.mkdir()
    for name in ("mark", *others):
        (folder / name).touch()
    return folder


def test_missing_and_empty_folders(tmp_path):
    check(tmp_path / "new" / "deep")
    check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is a file; name a folder"):
        check(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"file is a file; choose another folder"):
        check(tmp_path / "file" / "out")


@pytest.mark.parametrize("in_place", [False, True])
def test_the_root_folder(in_place):
    with pytest.raises(ConfigError, match="cannot be replaced; name a folder in it"):
        check(Path(Path.cwd().anchor), in_place=in_place)


def test_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for in_place in (False, True):
        check(Path(), in_place=in_place)
        check(Path("new"), in_place=in_place)


def test_earlier_output(tmp_path):
    out = ours(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out holds a run; choose another folder, or .* with --overwrite, or rest$"):
        check(out, hint=", or rest")
    check(out, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_other_origin(overwrite, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds files that are not part of a run; choose a new or empty folder"):
        check(tmp_path, overwrite=overwrite)


def test_files_beside_earlier_output(tmp_path):
    out = ours(tmp_path / "out", "thesis.txt")
    check(out, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds thesis\.txt, which is not part of a run; move it"):
        check(out, overwrite=True, may_hold=lambda entry: entry.name == "mark")


def test_folders_without_permission(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    out = ours(tmp_path / "closed" / "out")
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path / "closed")
    for path in (out, out.parent / "new", out.parent / "new" / "deep"):
        with pytest.raises(ConfigError, match=r"closed is not writable; choose another folder"):
            check(path, overwrite=True)
    check(out, overwrite=True, in_place=True)
    monkeypatch.setattr(os, "access", lambda folder, _: folder != out)
    with pytest.raises(ConfigError, match="out is not writable"):
        check(out, overwrite=True, in_place=True)
