"""The command line in this process, and rows to train on."""

import json
from pathlib import Path

import pytest
from commands import Peftly, captured


@pytest.fixture(name="peftly")
def _peftly(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Peftly:
    """Run a command in this process, which has imported torch already, as `peftly` would."""
    return captured(capfd, monkeypatch)


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
