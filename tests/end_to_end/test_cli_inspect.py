"""`peftly inspect`: data before a training, on the screen and as a page."""

import json
from pathlib import Path

import pytest
from commands import Peftly


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    good = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(12)]
    bad = [
        {"prompt": "法国", "completion": "巴黎"},
        {"prompt": "x", "completion": ""},
        {"prompt": "y", "completion": "so " * 90},
    ]
    for name, rows in (("good", good), ("bad", [*bad, *good])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_a_data_file_is_inspected_with_a_base(peftly: Peftly, folder, tiny_llama_folder):
    base = ["--base", tiny_llama_folder]
    outcome = peftly("inspect", "good.jsonl", *base, "--strict")
    assert (outcome.code, outcome.err) == (0, "")
    assert "example 3: good.jsonl: line 3: " in outcome.out
    assert "the checks found nothing" in outcome.out
    assert "train: length: median" in outcome.out
    bad = ["bad.jsonl", *base, "--max-length", "40", "--set", "data.validation_fraction=0"]
    assert peftly("inspect", *bad).code == 0
    outcome = peftly("inspect", *bad, "--strict", "--page", "audit.html")
    assert (outcome.code, outcome.err) == (1, "")
    assert "problem cut_answer: train: 1 × example with an answer that is cut" in outcome.out
    assert "problem empty_answer: train: 1 × row dropped" in outcome.out
    assert "  bad.jsonl: line 2\n" in outcome.out
    assert "page: audit.html" in outcome.out
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert "bad.jsonl: line 3" in page
    assert "cut_answer" in page
    assert sorted(path.name for path in folder.iterdir()) == ["audit.html", "bad.jsonl", "good.jsonl"]


def test_the_examples_of_one_finding(peftly: Peftly, folder, tiny_llama_folder):
    options = ["bad.jsonl", "--base", tiny_llama_folder, "--max-length", "40", "--set", "data.validation_fraction=0"]
    shown = peftly("inspect", *options, "--only", "empty_answer").out
    assert "\n\nbad.jsonl: line 2\n\n⟦trained⟧" in shown
    assert "bad.jsonl: line 3: " in (shown_cut := peftly("inspect", *options, "--only", "cut_answer").out)
    assert "⟦" in shown_cut.split("\n\n")[1]
    assert "example 1" not in shown
    assert "no example has this kind of finding" in peftly("inspect", *options, "--only", "duplicate").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good.jsonl", "--only", "typo"], "--only typo: there is no such kind of finding; the checks found nothing"),
        (["good.jsonl", "--page", "good.jsonl"], "--page good.jsonl: the name of the page must end in .html"),
        (["good.jsonl", "--data", "bad.jsonl"], "data are given twice: good.jsonl, and --data bad.jsonl"),
        (["missing.jsonl", "--strict"], "missing.jsonl: no such file or folder"),
        (["."], ". holds no run: it has no config.yaml"),
    ],
)
def test_mistakes_end_with_code_2(peftly: Peftly, folder, tiny_llama_folder, arguments, message):
    before = (folder / "good.jsonl").read_bytes()
    outcome = peftly("inspect", *arguments, "--base", tiny_llama_folder)
    assert (outcome.code, outcome.out.count("problem")) == (2, 0)
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert (folder / "good.jsonl").read_bytes() == before
