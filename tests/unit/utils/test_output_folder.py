"""Which output folders a command accepts, and how it writes them."""

import errno
import os
from pathlib import Path

import pytest
import torch

from peftly.errors import ConfigError
from peftly.utils import MARK, mark_text, read_mark, write_folder, write_tensors, write_text
from peftly.utils.output_folder import check_output_folder


def check(path, **changes):
    settings = {"kind": "a run", "overwrite": False}
    check_output_folder(path, **settings | changes)


def ours(folder, *others):
    folder.mkdir()
    (folder / MARK).write_text(mark_text("a run", ["a/b", "c"]))
    for name in others:
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
    out = ours(tmp_path / "out", "thesis.txt", "a", "c")
    check(out, overwrite=True, in_place=True)
    with pytest.raises(ConfigError, match=r"holds thesis\.txt, which is not part of a run; move it"):
        check(out, overwrite=True)
    check(out, overwrite=True, may_hold=lambda _: True)
    (out / "thesis.txt").unlink()
    check(out, overwrite=True)


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"kind": "an export"}', '{"kind": ["a run"]}', "[" * 100_000])
def test_a_folder_with_another_mark(mark, tmp_path):
    (tmp_path / MARK).write_text(mark)
    with pytest.raises(ConfigError, match="holds files that are not part of a run"):
        check(tmp_path, overwrite=True)


def test_a_mark_that_is_a_link_is_no_mark(tmp_path):
    ours(tmp_path / "other")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).symlink_to(tmp_path / "other" / MARK)
    with pytest.raises(ConfigError, match="holds files that are not part of a run"):
        check(tmp_path / "out", overwrite=True)


def test_folders_without_permission(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    out = ours(tmp_path / "closed" / "out")
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path / "closed")
    for path in (out.parent / "new", out.parent / "new" / "deep"):
        with pytest.raises(ConfigError, match=r"closed is not writable; choose another folder"):
            check(path, overwrite=True)
    check(out, overwrite=True)
    monkeypatch.setattr(os, "access", lambda folder, _: folder != out)
    with pytest.raises(ConfigError, match="out is not writable"):
        check(out, overwrite=True)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_replaces_the_earlier_one(tmp_path):
    out = tmp_path / "new" / "out"
    for name in ("first", "second"):
        with write_folder(out, kind="a run") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / name).write_text(name)
            assert not (out / "deep" / name).exists()
    assert names_in(tmp_path) == ["new", "new/out", "new/out/.peftly.json", "new/out/deep", "new/out/deep/second"]
    assert read_mark(out) == {"kind": "a run", "files": ["deep/second"]}


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with write_folder(tmp_path / "out", kind="a run") as folder:
            (folder / "weights").touch(mode=0o600)  # as safetensors writes them
        write_tensors(tmp_path / "tensors", {"a": torch.ones(2)}, {})
        write_text(tmp_path / "text", "a")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"out": 0o750, "weights": 0o640, ".peftly.json": 0o640, "tensors": 0o640, "text": 0o640}


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
        ours(out.parent).rename(tmp_path / "x")
        (tmp_path / "new").mkdir()
        (tmp_path / "x").rename(out)
    before = names_in(tmp_path)

    def write():
        with write_folder(out, kind="a run") as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(ConfigError, match=message):
        write()
    assert names_in(tmp_path) == before


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "out", kind="a run"):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []
