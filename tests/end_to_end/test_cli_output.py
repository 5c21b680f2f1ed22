"""Text of data, files and models on the screen, in files and in pages; outputs that are closed or full."""

import io
import json
import math
import os
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.table import Table
from rich.text import Text

import peftly.cli
from peftly.cli.console import console, echo, prepare_streams
from peftly.cli.printable import printable
from peftly.training import job

HOSTILE = "[/] [bold]b[/bold] [link=x]l :smile: \x1b[2J\x1b]52;c;aGk=\x07 \x9b2J \u202eabc \0 \r end"
SHOWN = HOSTILE
for control in "\x1b\x07\x9b\u202e\0\r":
    SHOWN = SHOWN.replace(control, f"\\u{ord(control):04x}")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_printable_keeps_lines_tabs_and_all_scripts():
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\nc é 漢字 😀 עברית") == "a\tb\nc é 漢字 😀 עברית"
    assert printable("\ud800\u2028") == "\\ud800\\u2028"
    assert json.loads(printable(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_a_console_shows_any_text_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE))
    with redirect_stdout(Terminal()) as terminal:
        screen = console()
        screen.print(HOSTILE)
        screen.print(Text(HOSTILE, style="bold"))
        screen.print(table)
    shown = terminal.getvalue()
    without_bell = SHOWN.replace("\\u0007", "").replace("\\u000d", "")  # rich leaves them out
    assert shown.count(without_bell) == 4
    assert "\x1b[1m" in shown, "rich's own styles stay"
    assert not any(code in shown for code in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", "\0"))


def test_a_result_is_escaped_on_a_terminal_only():
    with redirect_stdout(Terminal()) as terminal:
        echo(HOSTILE)
    with redirect_stdout(io.StringIO()) as pipe:
        echo(HOSTILE)
    assert (terminal.getvalue(), pipe.getvalue()) == (SHOWN + "\n", HOSTILE + "\n")


def test_an_error_is_one_line(peftly, tmp_path):
    outcome = peftly("evaluate", f"{tmp_path}/a\nb\x1b[2J\u202e")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "a b\\u001b[2J\\u202e" in outcome.err


def test_an_argument_that_is_no_text(peftly):
    outcome = peftly("generate", "--base", "x", "--prompt", "a\udcff")
    assert outcome.code == 2
    assert "'a?' has bytes that are no text" in outcome.err


def test_streams_that_are_closed_or_lack_characters(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    monkeypatch.setattr(sys, "stderr", None)
    prepare_streams()
    print("…\ud800é", flush=True)
    print("nowhere", file=sys.stderr)
    assert buffer.getvalue() == b"\\u2026\\ud800\xe9\n"
    assert sys.stdin.read() == ""


@contextmanager
def failing_output(kind):
    """A standard output whose reader has gone, or whose disk is full."""
    if kind == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    stream = os.fdopen(writer, "w")
    with redirect_stdout(stream):
        yield
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_run_outlives_its_output(kind, tiny_llama_folder, tweets, tmp_path, monkeypatch):
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["peftly", *map(str, arguments), "--epochs", "1"])
    with failing_output(kind), pytest.raises(SystemExit) as end:
        peftly.cli.main()
    assert not end.value.code
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(("kind", "code"), [("closed", 1), ("full", 2)])
@pytest.mark.parametrize("name", ["methods", "env"])
def test_a_command_whose_result_is_its_output_ends(kind, code, name, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["peftly", name])
    with failing_output(kind), pytest.raises(SystemExit) as end:
        peftly.cli.main()
    assert end.value.code == code
    assert capfd.readouterr().err.count("\n") == (kind == "full")


class Texts(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.texts = []
        self.feed(source)

    def handle_data(self, data):
        self.texts.append(data)


def test_hostile_rows_through_every_command(peftly, tiny_llama_folder, tmp_path, monkeypatch):
    """The labels have markup, control characters and the end of a script; the validation loss is not a number."""
    labels = [f"{HOSTILE} <script>", "[/bold] & $\\frac$"]
    rows = [{"text": f"row {number} {HOSTILE}", "label": labels[number % 2]} for number in range(12)]
    file = tmp_path / "[red]rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(job, "evaluate", lambda *a, **k: replace(job_evaluate(*a, **k), loss=math.nan))
    options = ["--base", tiny_llama_folder, "--data", file, "--test", file, "--epochs", "1"]
    out = tmp_path / "[bold]out"
    outcomes = [
        peftly("inspect", *options[:-2]),
        peftly("train", *options, "--method", "lora", "--out", out, "--set", "train.eval_steps=1"),
        peftly("evaluate", out),
        peftly("evaluate", out, "--json"),
        peftly("generate", out, "--text", HOSTILE.replace("\0", ""), "--max-new-tokens", "3"),
    ]
    for outcome in outcomes:
        assert (outcome.code, outcome.err) == (0, ""), outcome
    for outcome in outcomes[:3]:
        assert "[/bold] & $\\frac$" in outcome.out
        assert "\x1b" not in outcome.out
    assert "validation loss not a number" in outcomes[1].out
    assert json.loads(outcomes[3].out)["labels"] == sorted(label.strip() for label in labels)
    assert json.loads((out / "evaluation.json").read_text())["labels"] == sorted(labels)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert labels[0].replace("\0", "").replace("\r", "\n") in "".join(Texts(page).texts).replace("\0", "")


job_evaluate = job.evaluate


@pytest.mark.parametrize(("held_out", "is_worse"), [("zebra quilt 0", True), ("late late late", False)])
def test_an_adapter_that_is_worse_than_its_base_is_said_to_be(held_out, is_worse, peftly, tiny_llama_folder, tmp_path):
    for name, text in (("train", "late late late"), ("test", held_out)):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"text": text}) + "\n" + json.dumps({"text": text + "."}) + "\n"
        )
    files = ["--data", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl", "--validation", "none"]
    words = ["--method", "lora", "--learning-rate", "1", "--set", "train.max_steps=30", "--out", tmp_path / "run"]
    outcome = peftly("train", "--base", tiny_llama_folder, *files, *words)
    assert outcome.code == 0, outcome.err
    assert ("warning: the loss of the untouched base, " in outcome.out) is is_worse
