"""How the tests here call the command line and what it leaves behind."""

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
    """What a command left behind on the screen."""

    code: int
    out: str
    err: str


Peftly = Callable[..., Outcome]


def environment() -> dict[str, str]:
    """Return variables for a command in a process of its own: the sources of this tree, one thread, no network."""
    source = str(Path(peftly.cli.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PEFTLY_DEBUG": ""}


def command(*arguments: Any) -> list[str]:
    """Return the words of a command."""
    return [sys.executable, "-m", "peftly", *map(str, arguments)]


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


def peftly_apart(*arguments: Any, typed: str = "", **variables: str) -> Outcome:
    """Run a command in a process of its own, as a shell would."""
    done = subprocess.run(
        command(*arguments),
        input=typed,
        capture_output=True,
        text=True,
        env={**environment(), **variables},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def commands_of(app: Any) -> list[str]:
    """Return the names of the commands that there are."""
    return [command.callback.__name__ for command in app.registered_commands]
