"""What must hold after a command that writes was stopped at any moment."""

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import Outcome, peftly_here
from crash_cases import Case, Expected, done
from crash_disk import Record, Tree, forked, record

from peftly import load_base
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import PeftlyError
from peftly.runs.folder import read_config

TIMES = {"summary.json", "report.html", "results.json", "quickstart.json"}
"""Files that hold durations, which differ between runs."""


def ends(command: Callable[[], Outcome]) -> Outcome:
    """Run a command; an exception that reaches its caller becomes exit code 1 with a traceback, as in a process."""
    try:
        return command()
    except BaseException:  # noqa: BLE001
        return Outcome(1, "", traceback.format_exc())


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
            found[name] = [line for line in map(_line, path.read_bytes().splitlines()) if line[0] != "note"]
        else:
            found[name] = "" if path.name in TIMES else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _line(text: bytes) -> tuple[Any, ...]:
    """Return what does not depend on time in a line of metrics."""
    try:
        line = json.loads(text)
    except ValueError:
        return (text,)
    return line.get("kind"), line.get("step", line.get("folder"))


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


def check_kept(expected: Expected, tree: Tree) -> None:
    """The earlier adapters are somewhere in the folder until the new ones are there."""
    earlier, new = (
        {content for name, content in (version or {}).items() if name.endswith("adapter_model.safetensors")}
        for version in (expected.earlier, expected.new)
    )
    assert earlier <= set(tree.values()) or new <= set(tree.values()), "the earlier result is gone"


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
    error = _error(case, out)
    if error is not None:
        assert "\n" not in error, error
        mark = out / ".peftly.json"
        if case.kind in ("run", "together"):
            assert not mark.exists() or '"finished": true' not in mark.read_text(), error
        else:
            assert expected.earlier is None, f"absent: {error}"
            assert not mark.exists(), error
        return "one_line"
    if case.kind in ("run", "together"):
        parts = [Path()] if case.kind == "run" else [Path(f"member_{number}") for number in (1, 2)]
        for part in parts:
            names = {name for name in content(out) if name.startswith(f"{(part / 'adapter').as_posix()}/")}
            versions = [
                {name: version.get(name) for name in names} for version in (expected.earlier or {}, expected.new)
            ]
            assert {name: content(out)[name] for name in names} in versions, ("opened a mixture", names)
        return "same_bytes"
    assert content(out) in (expected.earlier, expected.new), (
        "opened a mixture",
        difference(content(out), expected.earlier),
        difference(content(out), expected.new),
    )
    tidy(out)
    return "same_bytes"


def _error(case: Case, out: Path) -> str | None:
    """Open a result, and return the error; None: it opens."""
    try:
        if case.kind == "together":
            read_config(out)  # as every command does that opens an ensemble
            for member in ("member_1", "member_2"):
                _read(out / member)
        elif case.kind == "model":
            load_base(str(out))
        else:
            _read(out)
    except PeftlyError as error:
        return str(error)
    return None


def _read(folder: Path) -> None:
    for adapter in open_adapters(folder).folders.values():
        adapter.tensors()


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
