"""What the tests of the recipes share: the command line, and the scripts of `examples/` on tiny bases.

Each test runs the whole path of its recipe in seconds: the YAML file of `examples/` by its command, with a tiny base
and few steps, and the script by its `main`. The real measurement is `make recipes`.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import Peftly, captured

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="peftly")
def _peftly(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Peftly:
    """Run a command in this process, in the root of the repository, so that paths of the examples are right."""
    monkeypatch.chdir(ROOT)
    return captured(capfd, monkeypatch)


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """Import a script of `examples/` by its name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("recipes").example
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def rows_of() -> Callable[[str], list[dict[str, Any]]]:
    """Read the rows of `examples/data/NAME.jsonl`."""

    def read(name: str) -> list[dict[str, Any]]:
        lines = (ROOT / "examples" / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read
