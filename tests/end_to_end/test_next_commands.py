"""Every command that a training advises works as it is printed."""

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from commands import Peftly
from tiny_tasks import answer_rows, labelled_rows, pair_rows, tagged_rows

from peftly.cli.next_commands import next_commands
from peftly.data import RowFormat

TWO_FIELDS = [{"a": f"what {number}", "b": "who", "answer": f"it is number {number}"} for number in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"ask {number}"}, {"role": "assistant", "content": f"say {number}"}]}
    for number in range(12)
]
TEMPLATE = ["--template", "{a} and {b} :", "--target", "answer"]
NO_VALIDATION = ["--set", "data.validation_fraction=0"]
CASES = {
    "label": ("llama", labelled_rows(2), []),
    "label without validation": ("llama", labelled_rows(2), NO_VALIDATION),
    "two fields": ("llama", TWO_FIELDS, TEMPLATE),
    "two fields without validation": ("llama", TWO_FIELDS, [*TEMPLATE, *NO_VALIDATION]),
    "labels of two fields": ("llama", pair_rows(1), ["--template", "{premise} / {hypothesis}"]),
    "classes of two fields": ("bert", pair_rows(1), ["--template", "{premise} / {hypothesis}"]),
    "pairs": ("bert", pair_rows(1), []),
    "tags": ("bert", tagged_rows(1), []),
    "answers": ("t5", answer_rows(3), []),
    "chat": ("llama", CHATS, []),
    "text": ("llama", [{"text": f"some text {number}"} for number in range(12)], []),
    "instructions": ("llama", [{"instruction": "say", "input": f"{n}", "output": f"it is {n}"} for n in range(12)], []),
    "ensemble": ("llama", labelled_rows(2), ["--ensemble", "2"]),
}


def advised(out: str) -> list[list[str]]:
    """The commands after "Next:", as a shell splits them, without the name of the program."""
    lines = out.partition("\nNext:\n")[2].splitlines()
    assert lines
    return [shlex.split(line)[1:] for line in lines]


def check(peftly: Peftly, monkeypatch, out: str) -> list[str]:
    """Run the commands, and return their names."""
    commands = advised(out)
    for command in commands:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        outcome = peftly(*command)
        assert (outcome.code, outcome.err) == (0, ""), command
    return [command[0] for command in commands]


QUICK = ("two fields without validation", "pairs", "chat", "ensemble")
"""Cases that every run of the tests checks; the others are for the soak tests."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.soak) for case in CASES]
)
def test_every_command_works(case, peftly: Peftly, tmp_path: Path, tiny_llama_folder, task_base, monkeypatch):
    architecture, rows, options = CASES[case]
    base = tiny_llama_folder if architecture == "llama" else task_base(architecture)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--base",
        base,
        "--data",
        file,
        "--method",
        "lora",
        "--set",
        "train.max_steps=1",
        "--out",
        tmp_path / "a run",
    ]
    outcome = peftly("train", *flags, *options)
    assert outcome.code == 0, outcome.err
    names = check(peftly, monkeypatch, outcome.out)
    assert ("evaluate" in names) == ("without" not in case)
    assert ("chat" in names) == (case == "chat")
    assert names[-2:] == ["generate", "inspect"]


@pytest.mark.soak
def test_every_command_works_after_jobs(peftly: Peftly, tmp_path: Path, tiny_llama_folder, monkeypatch):
    files = {"one": labelled_rows(2), "two": TWO_FIELDS}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "base": str(tiny_llama_folder),
        "method": "lora",
        "train": {"max_steps": 1},
        "out": str(tmp_path / "runs"),
    }
    jobs = {name: {"data": {"train": str(tmp_path / f"{name}.jsonl")}} for name in files}
    jobs["two"]["data"] |= {"template": "{a} and {b} :", "target": "answer"}
    config = tmp_path / "jobs.yaml"
    config.write_text(yaml.safe_dump({**common, "jobs": jobs}))
    outcome = peftly("train", config)
    assert outcome.code == 0, outcome.err
    assert check(peftly, monkeypatch, outcome.out) == ["evaluate", "generate", "inspect"]


@pytest.mark.parametrize(
    "row_format",
    [
        RowFormat("text", None, "text"),
        RowFormat("completion", "{prompt}", "completion"),
        RowFormat("completion", "{a b} and {c}, {c}", "d"),
        RowFormat("alpaca", "{instruction}\n{input}\n:", "output"),
        RowFormat("label", "{text} is", "label", ("x", "y")),
        RowFormat("label", "{a} / {b} is", "label", ("x", "y")),
        RowFormat("label", "{premise}", "label", ("x", "y"), pair="hypothesis"),
        RowFormat("tags", "{tokens}", "tags", ("x", "y")),
    ],
    ids=lambda row_format: f"{row_format.kind} {row_format.template}",
)
@pytest.mark.parametrize("has_held_out", [True, False])
def test_commands_fit_the_row_format(row_format, has_held_out):
    commands = next_commands(Path("a run"), row_format, has_held_out=has_held_out)
    *first, (name, run, *options), last = [shlex.split(command)[1:] for command in commands]
    assert (name, run, last) == ("generate", "a run", ["inspect", "a run"])
    assert [command[:2] for command in first] == ([["evaluate", "a run"]] if has_held_out else [])
    generates = [command[2:] == ["--generate", "32"] for command in first]
    assert generates == ([row_format.kind in ("completion", "alpaca")] if has_held_out else [])
    values = list(zip(options[::2], options[1::2], strict=True))
    pair = dict(values).get("--pair")
    fields = dict(value.split("=") for option, value in values if option == "--field")
    assert "…" in row_format.format_prompt(fields or dict(values)["--text"], pair).prompt
