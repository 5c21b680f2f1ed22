"""The name of the program in the commands that peftly suggests."""

import shlex
import sys
from pathlib import Path

import pytest

from peftly.utils.environment import program


@pytest.fixture(name="venv")
def _venv(tmp_path, monkeypatch):
    """An environment that is not activated, in the current folder."""
    script = tmp_path / ".venv" / "bin" / "peftly"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return script


def test_its_name_if_the_path_has_it(venv, monkeypatch):
    monkeypatch.setenv("PATH", str(venv.parent))
    assert program() == "peftly"


def test_its_path_if_the_environment_is_not_activated(venv, tmp_path, monkeypatch):
    assert program() == ".venv/bin/peftly"
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert program() == str(venv)


def test_a_module_if_there_is_no_script(venv, monkeypatch):
    venv.unlink()
    assert program() == f"{venv.with_name('python')} -m peftly"
    odd = Path("/some where/python")
    monkeypatch.setattr(sys, "executable", str(odd))
    assert shlex.split(program()) == [str(odd), "-m", "peftly"]
