"""Commands that write to a disk, and what must hold after each of them was stopped at any moment."""

import gc
import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from commands import Outcome, peftly_here
from crash_disk import Record, exit_code, forked, record
from tiny import perturb

from peftly import LoRA, attach, load_base, save_adapter, trainable_parameters
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import PeftlyError
from peftly.runs.folder import read_config
from peftly.training.loop import TrainingLoop

TIMES = {"summary.json", "report.html", "results.json", "quickstart.json"}
"""Files that hold durations, which differ between runs."""


NAMES = (
    "train",
    "train with checkpoints",
    "resume",
    "overwrite a finished run",
    "overwrite an unfinished run",
    "train an ensemble",
    "overwrite an ensemble",
    "quickstart",
    "quickstart again",
    "save an adapter",
    "save over another adapter",
    "save over adapters saved together",
    "save adapters together",
    "merge",
    "overwrite with merge",
    "export --to peft",
    "overwrite with export --to peft",
    "export --to gguf",
    "overwrite with export --to gguf",
    "combine",
    "overwrite with combine",
)
"""Names of all cases."""


@dataclass(frozen=True)
class Case:
    """A command that writes into the folder `out`.

    Attributes:
        name: name of the case.
        kind: what it writes: run, together, quickstart, adapter, model or export.
        command: function that runs it in the current folder.
        before: functions that make the earlier content of the folder.
        again: function that makes the same content from the beginning; None: `command`.
        older: function that makes the content to which the earlier unfinished run continues.
    """

    name: str
    kind: str
    command: Callable[..., Outcome]
    before: tuple[Callable[..., Outcome], ...] = ()
    again: Callable[..., Outcome] | None = None
    older: Callable[..., Outcome] | None = None


@dataclass(frozen=True)
class Expected:
    """Content of `out` before a command, and after it; None: there was no such folder.

    Attributes:
        earlier: content before the command.
        new: content after it.
        older: content to which the earlier unfinished run continues; None: there is none.
    """

    earlier: dict[str, Any] | None
    new: dict[str, Any]
    older: dict[str, Any] | None = None


class World:
    """Inputs of the commands, and a model to save. The libraries are imported once, for all copies of the process."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.rows = folder / "rows.jsonl"
        texts = [{"text": f"row {number}", "label": ("yes", "no")[number % 2]} for number in range(12)]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
        self.patched = patch("peftly.report.run_page.line_chart", lambda *_, **__: "")  # a third of a run's time
        self.patched.start()
        for name, seed in (("a", 1), ("b", 2)):
            done(self.train("--seed", seed, out=folder / name)())
        done(self.quickstart(folder / "start"))
        done(peftly_here("merge", folder / "a", "--out", folder / "merged"))
        done(peftly_here("export", folder / "a", "--to", "gguf", "--out", folder / "gguf"))
        self.model, tokenizer = load_base(str(base), dtype="float32")
        for name, seed in (("one", 1), ("two", 2)):
            attach(self.model, LoRA(rank=seed), name=name, tokenizer=tokenizer)
            perturb([p for n, p in trainable_parameters(self.model).items() if f".{name}." in n], seed=seed)
        gc.collect()
        gc.freeze()  # a collection would copy the memory that a fork shares

    def end(self) -> None:
        """Undo what was changed in this process."""
        self.patched.stop()
        gc.unfreeze()

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def train(self, *words: Any, out: str | Path = "out") -> Callable[..., Outcome]:
        settings = ["--method", "lora", "--set", "method.rank=2", "--batch-size", 4, "--epochs", 2]
        settings += ["--set", "data.validation_fraction=0.25"]
        return cli("train", "--base", self.base, "--data", self.rows, *settings, *words, "--out", out)

    def quickstart(self, out: str | Path = "out", seed: int = 0) -> Outcome:
        settings = ["--limit", 4, "--epochs", 1, "--seed", seed]
        return peftly_here("quickstart", "--base", self.base, *settings, "--out", out)

    def save(self, *, name: str | None, scale: float = 1.0) -> Callable[[], Outcome]:
        def command() -> Outcome:
            for parameter in trainable_parameters(self.model).values():
                parameter.data.mul_(scale)
            try:
                save_adapter(self.model, "out", name=name)
            except PeftlyError as error:
                return Outcome(2, "", f"error: {error}\n")
            return Outcome(0, "", "")

        return command

    @cached_property
    def cases(self) -> list[Case]:
        a, b, steps = self.folder / "a", self.folder / "b", ("--set", "train.checkpoint_steps=2")
        older = self.train(*steps, "--seed", 7)
        two, overwrites = self.save(name=None), "--overwrite"
        cases = [
            Case("train", "run", self.train()),
            Case("train with checkpoints", "run", self.train(*steps, "--set", "train.save_steps=3")),
            Case("resume", "run", cli("train", "--resume", "out"), (self._unfinished,), again=older),
            Case("overwrite a finished run", "run", self.train(*steps, overwrites), (older,)),
            Case(
                "overwrite an unfinished run", "run", self.train(*steps, overwrites), (self._unfinished,), older=older
            ),
            Case("train an ensemble", "together", self.train(*steps, "--ensemble", 2)),
            Case(
                "overwrite an ensemble",
                "together",
                self.train(*steps, "--ensemble", 2, overwrites),
                (self.train("--ensemble", 2, "--seed", 7),),
            ),
            Case("quickstart", "quickstart", self.quickstart),
            Case("quickstart again", "quickstart", self.quickstart, (lambda: self.quickstart(seed=3),)),
            Case("save an adapter", "adapter", self.save(name="one")),
            Case("save over another adapter", "adapter", self.save(name="one", scale=2), (self.save(name="two"),)),
            Case("save over adapters saved together", "adapter", self.save(name="two"), (two,)),
            Case("save adapters together", "adapter", self.save(name=None, scale=2), (two,)),
        ]
        written = [("merge", "model"), ("export --to peft", "adapter"), ("export --to gguf", "gguf")]
        for words, kind in [*written, ("combine", "adapter")]:
            new, earlier = ([a], [b]) if words != "combine" else ([a, b], [a, b, "--weights", "2,1"])
            new, earlier = (cli(*words.split(), *sources, "--out", "out") for sources in (new, earlier))
            cases += [
                Case(words, kind, new),
                Case(f"overwrite with {words}", kind, cli(*new.words, overwrites), (earlier,)),
            ]
        assert tuple(case.name for case in cases) == NAMES
        return cases

    def unfinished_in(self, root: Path) -> None:
        os.chdir(root)
        done(self._unfinished())

    def _unfinished(self) -> Outcome:
        """Train until the second checkpoint, and end the process there."""

        def write_checkpoint(loop: Any) -> None:
            original(loop)
            if loop.jobs[0].step == 4:
                os._exit(137)

        original = TrainingLoop.write_checkpoint
        with patch.object(TrainingLoop, "write_checkpoint", write_checkpoint):
            status = exit_code(self.train("--seed", 7, "--set", "train.checkpoint_steps=2"))
        return Outcome(0 if status == 137 else 1, "", f"ended with {status}")


def cli(*words: Any) -> Any:
    """Return a function that runs a command."""

    def command(*more: Any) -> Outcome:
        return peftly_here(*words, *more)

    command.words = words
    return command


def ends(command: Callable[[], Outcome]) -> Outcome:
    """Run a command; an exception that reaches its caller becomes exit code 1 with a traceback, as in a process."""
    try:
        return command()
    except BaseException:
        return Outcome(1, "", traceback.format_exc())


def done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err


def said(outcome: Outcome) -> str | None:
    """Return the line of an error; None: the command succeeded. Anything else than one line is a failure."""
    if outcome.code == 0:
        return None
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: "), outcome
    assert outcome.err.count("\n") == 1, outcome
    return outcome.err.strip()


def content(out: Path) -> dict[str, Any] | None:
    """Return the files of a folder with hashes of their content; of times only the names, of metrics the steps."""
    if not out.is_dir():
        return None
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.name == ".peftly.lock":
            continue
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [(line["kind"], line.get("step", line.get("folder"))) for line in lines]
            found[name] = [line for line in found[name] if line[0] != "note"]
        else:
            found[name] = "" if path.name in TIMES else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(left: dict[str, Any] | None, right: dict[str, Any] | None) -> list[str]:
    left, right = left or {}, right or {}
    return sorted(name for name in left | right if left.get(name) != right.get(name))


def tidy(out: Path, *spared: str) -> None:
    """Nothing that a stopped command left is there any more."""
    left = [path.name for path in out.rglob(".peftly*") if path.name not in (".peftly.json", *spared)]
    assert not left, f"litter: {left}"


def recorded(case: Case, root: Path) -> tuple[Record, Expected]:
    """Run a case once, and return the states of the disk on the way."""
    root.mkdir()

    def prepare(*commands: Callable[[], Outcome]) -> dict[str, Any] | None:
        os.chdir(root)
        for command in commands:
            done(command())
        return content(root / "out")

    def command() -> Outcome:
        os.chdir(root)
        return case.command()

    older = forked(prepare, case.older) if case.older else None
    shutil.rmtree(root / "out", ignore_errors=True)
    earlier = forked(prepare, *case.before)
    states = record(root, command)
    done(states.result)
    tidy(root)
    new = content(root / "out")
    assert new is not None
    assert difference(earlier, new), "a case whose earlier content is the new one shows nothing"
    return states, Expected(earlier, new, older)


def check_end(expected: Expected, states: Record, folder: Path) -> None:
    """After a command has ended well, no power cut takes anything of its result."""
    for model, tree in states.moments[-1][1].items():
        states.write(tree, folder / model)
        found = content(folder / model / "out")
        assert found == expected.new, (model, difference(found, expected.new))


def check(case: Case, expected: Expected, fill: Callable[[Path], None], folder: Path) -> str:
    """Run what a user may run next in copies of a state. Return `same_bytes` or `one_line`, or fail.

    Args:
        case: command that was stopped.
        expected: content of its folder.
        fill: function that makes the state in a folder.
        folder: folder for the copies.
    """

    def here(name: str) -> Path:
        root = folder / name
        root.mkdir(parents=True)
        fill(root)
        os.chdir(root)
        return root / "out"

    outcomes = []
    if case.kind not in ("quickstart", "gguf"):
        outcomes.append(_opens(case, expected, here("open")))
    if case.kind in ("run", "together"):
        outcomes.append(_resumes(expected, here("resume")))
    out = here("again")
    command = case.again or case.command
    refusal = said(command())
    if refusal is not None:
        assert "--overwrite" in refusal, refusal
        assert case.kind != "quickstart", refusal
        done(command("--overwrite"))
    assert content(out) == expected.new, ("again", difference(content(out), expected.new))
    tidy(out)
    return "one_line" if "one_line" in outcomes else "same_bytes"


def _opens(case: Case, expected: Expected, out: Path) -> str:
    """Open the result. It is the earlier or the new one, or one line says that there is none."""
    try:
        _open(case, out)
    except PeftlyError as error:
        assert "\n" not in str(error), str(error)
        if case.kind in ("run", "together"):
            assert '"finished": true' not in _text(out / ".peftly.json"), str(error)
        else:
            assert expected.earlier is None, f"absent: {error}"
            assert not (out / ".peftly.json").exists(), str(error)
        return "one_line"
    if case.kind in ("run", "together"):
        parts = [Path()] if case.kind == "run" else [Path(f"member_{number}") for number in (1, 2)]
        for part in parts:
            names = {name for name in content(out) if name.startswith((part / "adapter").as_posix())}
            versions = [{name: version.get(name) for name in names} for version in (expected.earlier or {}, expected.new)]
            assert {name: content(out)[name] for name in names} in versions, ("opened a mixture", names)
        return "same_bytes"
    assert content(out) in (expected.earlier, expected.new), (
        "opened a mixture",
        difference(content(out), expected.earlier),
        difference(content(out), expected.new),
    )
    tidy(out)
    return "same_bytes"


def _open(case: Case, out: Path) -> None:
    if case.kind == "together":
        read_config(out)  # as every command does that opens an ensemble
        for member in ("member_1", "member_2"):
            _read(out / member)
    elif case.kind == "model":
        load_base(str(out))
    else:
        _read(out)


def _read(folder: Path) -> None:
    for adapter in open_adapters(folder).folders.values():
        adapter.tensors()


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _resumes(expected: Expected, out: Path) -> str:
    """Continue the run. It ends with the new result, unless a run is finished or none had begun."""
    refusal = said(peftly_here("train", "--resume", "out"))
    if refusal is not None and "holds no run to continue" in refusal:
        assert expected.earlier is None, refusal
        return "one_line"
    if refusal is not None:
        assert "is finished" in refusal, refusal
    versions = [expected.new, expected.earlier if refusal else expected.older]
    assert content(out) in versions, ("resumed", [difference(content(out), version) for version in versions])
    tidy(out, *([".peftly.lock"] if refusal else []))
    return "one_line" if refusal else "same_bytes"
