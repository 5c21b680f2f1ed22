"""Files of a folder are replaced together or not at all, by one process at a time, and nowhere else."""

import json
import os
import subprocess
import sys

import pytest

from peftly.errors import ConfigError
from peftly.utils import (
    drop_earlier,
    earlier_files,
    file_changes,
    folder_lock,
    has_earlier,
    recover,
    replacing_file,
    replacing_files,
    restore_earlier,
    write_text,
)


class KilledError(BaseException):
    """Stands for the end of the process."""


def contents(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def fill(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def replace(out, *, keep_earlier=False):
    with replacing_files(out, deletes=["old/a", "c"], markers=("config",), keep_earlier=keep_earlier) as scratch:
        fill(scratch, config="new", b="new", **{"deep/d": "new"})


EARLIER = {"config": "first", "b": "first", "c": "first", "old/a": "first", "mine": "mine"}
LATER = {"config": "new", "b": "new", "deep/d": "new", "mine": "mine"}


@pytest.fixture
def dies_before(monkeypatch):
    """Return a function that makes the process "die" before its n-th change: no later change reaches the disk."""

    def start(number):
        made = []

        def change(*_):
            made.append(None)
            if len(made) >= number:
                raise KilledError

        monkeypatch.setattr(file_changes, "before_change", change)
        return made

    return start


def changes_of(monkeypatch, job):
    made = []
    monkeypatch.setattr(file_changes, "before_change", lambda *change: made.append(change))
    job()
    monkeypatch.undo()
    return made


@pytest.mark.parametrize("keep_earlier", [False, True])
def test_a_replacement_that_dies_anywhere_is_completed_or_undone(keep_earlier, monkeypatch, tmp_path, dies_before):
    number = len(
        changes_of(monkeypatch, lambda: replace(fill(tmp_path / "whole", **EARLIER), keep_earlier=keep_earlier))
    )
    assert number > 10
    outcomes = []
    for count in range(1, number + 1):
        out = fill(tmp_path / str(count), **EARLIER)
        dies_before(count)
        with pytest.raises(KilledError):
            replace(out, keep_earlier=keep_earlier)
        monkeypatch.undo()
        # Another program sees no mixture: no marker, or all files of one version.
        seen = contents(out)
        if "config" in seen and ".peftly-commit/config" not in seen:
            assert {seen[name] for name in ("config", "b")} in ({"first"}, {"new"})
        recover(out)
        found = contents(out)
        outcomes.append(found["config"])
        kept = {name: text for name, text in found.items() if name.startswith(".peftly-earlier/")}
        assert {name: text for name, text in found.items() if name not in kept} in (EARLIER, LATER)
        is_kept = keep_earlier and found["config"] == "new"
        assert len(kept) == (3 if is_kept else 0)
        assert has_earlier(out) == is_kept
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"first", "new"}


def test_earlier_files_are_restored_or_dropped(tmp_path):
    for name in ("a", "b"):
        replace(fill(tmp_path / name, **EARLIER), keep_earlier=True)
    assert [file.name for file in earlier_files(tmp_path / "a")] == ["c", "config", "a"]
    restore_earlier(tmp_path / "a", ["config", "b", "deep/d"], markers=("config",))
    assert contents(tmp_path / "a") == {name: text for name, text in EARLIER.items() if name != "b"}
    drop_earlier(tmp_path / "b")
    assert contents(tmp_path / "b") == LATER


def test_the_restoration_that_dies_anywhere_is_completed_or_not_begun(monkeypatch, tmp_path, dies_before):
    def begun(name):
        out = fill(tmp_path / name, **EARLIER)
        replace(out, keep_earlier=True)
        return out

    restored = {name: text for name, text in EARLIER.items() if name != "b"}
    whole = begun("whole")
    new = ["config", "b", "deep/d"]
    number = len(changes_of(monkeypatch, lambda: restore_earlier(whole, new, markers=("config",))))
    for count in range(1, number + 1):
        out = begun(str(count))
        dies_before(count)
        with pytest.raises(KilledError):
            restore_earlier(out, new, markers=("config",))
        monkeypatch.undo()
        recover(out)
        if contents(out) != restored:
            restore_earlier(out, new, markers=("config",))
        assert contents(out) == restored


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "link/x"])
def test_a_manifest_leads_nowhere_else(name, tmp_path):
    out = fill(tmp_path / "out", **{".peftly-commit/x": "hostile"})
    fill(tmp_path / "other", x="mine")
    (out / "link").symlink_to(tmp_path / "other")
    for manifest in ({"moves": [name], "deletes": []}, {"moves": [], "deletes": [name]}):
        text = json.dumps(manifest | {"keep_earlier": False})
        (out / ".peftly-commit" / ".peftly-manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=r"leads out of the folder|is a symbolic link"):
            recover(out)
    assert contents(tmp_path / "other") == {"x": "mine"}
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        {"moves": ["sub/key"], "deletes": [], "keep_earlier": False},
        {"moves": [], "deletes": ["key"], "keep_earlier": True},
        {"moves": [], "deletes": ["sub/key"], "keep_earlier": True},
    ],
    ids=["a link to read from", "a link to keep in", "a link inside to keep in"],
)
def test_links_beside_a_manifest_lead_nowhere_else(manifest, tmp_path):
    other = fill(tmp_path / "other", key="mine")
    out = fill(tmp_path / "out", key="hostile", **{"sub/key": "hostile"})
    fill(out / ".peftly-commit")
    (out / ".peftly-commit" / "sub").symlink_to(other)
    if manifest["deletes"] == ["key"]:
        (out / ".peftly-earlier").symlink_to(other)
        assert (has_earlier(out), earlier_files(out)) == (False, [])
    else:
        (out / ".peftly-earlier").mkdir()
        (out / ".peftly-earlier" / "sub").symlink_to(other)
    (out / ".peftly-commit" / ".peftly-manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="is a symbolic link, through which nothing is written"):
        recover(out)
    assert contents(other) == {"key": "mine"}


def test_a_pipe_in_place_of_a_manifest_is_one_line(tmp_path):
    out = fill(tmp_path / "out", **{".peftly-commit/x": "x"})
    os.mkfifo(out / ".peftly-commit" / ".peftly-manifest.json")
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
        recover(out)


def test_a_link_to_the_folder_itself_is_followed(tmp_path):
    """As on clusters, where the folder of all runs is often a link to another disk."""
    fill(tmp_path / "disk")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    for out in (tmp_path / "runs", tmp_path / "runs" / "new"):
        replace(out)
        write_text(out / "text", "text")
        assert contents(out)["config"] == "new"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_something_else_with_the_name_of_the_lock(kind, tmp_path):
    if kind == "link":
        (tmp_path / ".peftly.lock").symlink_to(fill(tmp_path / "other", key="mine") / "key")
    else:
        (tmp_path / ".peftly.lock").mkdir()
    with pytest.raises(ConfigError, match=r"peftly\.lock is a symbolic link or a folder, .*remove it"):
        replace(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"moves": [1]}', '{"moves": ["a"], "deletes": 3}', "[" * 100_000])
def test_a_damaged_manifest_is_one_line(text, tmp_path):
    out = fill(tmp_path / "out", **{".peftly-commit/x": "x", "a": "a"})
    (out / ".peftly-commit" / ".peftly-manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged: the files of .* were being replaced"):
        recover(out)
    assert contents(out)["a"] == "a"


def test_nothing_is_written_through_links(tmp_path):
    other = fill(tmp_path / "other", precious="mine")
    out = fill(tmp_path / "out")
    (out / "report").symlink_to(other / "precious")
    (out / "adapter").symlink_to(other)
    (out / "metrics").symlink_to(other / "new")
    write_text(out / "report", "text")
    assert not (out / "report").is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        file_changes.append(out / "metrics", b"line")
    with pytest.raises(ConfigError, match="adapter is a symbolic link"), replacing_files(out) as scratch:
        fill(scratch, **{"adapter/weights": "new"})
    with pytest.raises(ConfigError, match="secret is a symbolic link"), replacing_files(out) as scratch:
        (scratch / "secret").symlink_to(other / "precious")
    assert contents(other) == {"precious": "mine"}


def test_an_error_leaves_no_folder(tmp_path):
    def write_folder():
        with replacing_files(tmp_path / "new" / "deep") as scratch:
            fill(scratch, a="a")
            raise ZeroDivisionError

    def write_file():
        with replacing_file(tmp_path / "a") as scratch:
            scratch.write_text("half")
            raise ZeroDivisionError

    for write in (write_folder, write_file):
        with pytest.raises(ZeroDivisionError):
            write()
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from peftly.utils.locks import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_hears_who_writes(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        with pytest.raises(ConfigError, match=message), folder_lock(tmp_path):
            pass
        with pytest.raises(ConfigError, match=message), replacing_files(tmp_path) as scratch:
            fill(scratch, a="a")
        assert [path.name for path in tmp_path.iterdir()] == [".peftly.lock"]
    finally:
        holder.kill()
        holder.wait()
    # The lock of a process that has died is taken over, and its file deleted.
    with folder_lock(tmp_path), folder_lock(tmp_path):
        assert json.loads((tmp_path / ".peftly.lock").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
