"""Calls of the command line, in this process and in another one."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import peftly.cli


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Peftly = Callable[..., Outcome]


def environment() -> dict[str, str]:
    """Return the variables of a command in another process: the sources of this tree, one thread, no network."""
    source = str(Path(peftly.cli.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PEFTLY_DEBUG": ""}


def command(*arguments: Any) -> list[str]:
    """Return the arguments of a process that runs a command."""
    return [sys.executable, "-m", "peftly", *map(str, arguments)]


def captured(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Peftly:
    """Return a function that runs a command in this process, with the fixtures of a test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PEFTLY_DEBUG", raising=False)

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["peftly", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            peftly.cli.main()
        out, err = capfd.readouterr()
        return Outcome(int(end.value.code or 0), out, err)

    return run


def peftly_here(*arguments: Any) -> Outcome:
    """Run a command in this process, which has imported torch already; for fixtures that tests share."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["peftly", *map(str, arguments)]),
        patch.dict(os.environ, HF_HUB_OFFLINE="1", PEFTLY_DEBUG=""),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        peftly.cli.main()
    return Outcome(int(end.value.code or 0), out.getvalue(), err.getvalue())


def peftly_apart(*arguments: Any, **variables: str) -> Outcome:
    """Run a command in another process, as a shell does."""
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**environment(), **variables},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def commands_of(app: Any) -> list[str]:
    """Return the names of the commands."""
    return [command.callback.__name__.replace("_", "-") for command in app.registered_commands]
