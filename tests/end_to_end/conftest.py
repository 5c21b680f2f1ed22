"""The command line in this process, and rows to train on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome, Peftly

import peftly.cli


@pytest.fixture(name="peftly")
def _peftly(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Peftly:
    """Run a command in this process, which has imported torch already, as `peftly` would."""
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


@pytest.fixture(scope="session")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 labelled rows that even a tiny model can tell apart."""
    file = tmp_path_factory.mktemp("rows") / "tweets.jsonl"
    bad = ["late again", "never arrived", "crashed twice", "nobody answers"]
    good = ["great service", "love the store", "thanks for the help", "open on Sunday"]
    rows = [
        {"text": f"@shop {words} {number}", "label": label}
        for number in range(5)
        for label, kind in (("complaint", bad), ("no complaint", good))
        for words in kind
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
