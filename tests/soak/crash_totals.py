"""Counts of what was tried, and the page that quotes them."""

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "crashes.json"
PAGE = ROOT / "docs" / "robustness.md"
STEP = int(os.environ.get("SOAK_STEP", "1"))
"""1: everything is tried; 5: about a fifth of it, for a machine with little time."""

FAMILIES = {
    "kill": "A kill before each file operation",
    "power cut": "A power cut before each file operation, in two models of a disk",
    "random kills": "SIGKILL at a random moment, each method for causal models",
    "command line": "SIGKILL at a random moment, whole commands",
    "exceptions": "An exception or a stop signal at a random moment",
    "full disk": "No space from each file operation on, or at four of them",
    "small disk": "A file system of 21 sizes",
    "bit flips": "One flipped bit in a file",
    "two processes": "Several processes in one folder",
}


ALWAYS_IN_FULL = ("random kills", "command line", "small disk", "two processes")


class Family:
    """Counts of one family of tests, which is run in full."""

    def __init__(self, name: str, part: str = "") -> None:
        assert name in FAMILIES, name
        self.name, self.part, self.started = name, part, time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.undetected: Counter[str] = Counter()

    def attempt(self, description: str, function: Any, *arguments: Any) -> None:
        """Count the outcome of one case; a failure is kept, and the other cases go on."""
        try:
            self.counts[function(*arguments)] += 1
        except AssertionError as error:
            self.faults.append(f"{description}: {str(error).strip()[-2000:]}")

    def finish(self) -> None:
        """Fail if anything was lost; otherwise add the counts to the results."""
        listed = "\n".join(self.faults[:20])
        assert not self.faults, f"{len(self.faults)} failed, {self.counts.total()} did not; the first:\n{listed}"
        write(self)


def write(family: Family) -> None:
    """Write the counts of a part of a family into the results."""
    with FileLock(RESULTS.with_suffix(".lock")):  # another process of pytest may write, too
        results = read()
        known = results.setdefault(family.name, {"parts": {}})
        known["parts"][family.part] = {
            "cases": family.counts.total(),
            "same_bytes": family.counts["same_bytes"],
            "one_line": family.counts["one_line"],
            "undetected": dict(family.undetected),
            "lost": len(family.faults),
            "step": 1 if family.name in ALWAYS_IN_FULL else STEP,
            "seconds": round(time.perf_counter() - family.started),
        }
        for key in ("cases", "same_bytes", "one_line", "lost", "seconds"):
            known[key] = sum(part[key] for part in known["parts"].values())
        ordered = {name: results[name] for name in FAMILIES if name in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return the committed results."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def table(results: dict[str, Any]) -> str:
    """Return the table of the page."""
    lines = ["| tried | cases | ended with the bytes of the unbroken run | one line first | lost |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, counts in results.items():
        cells = [f"{counts[key]:,}" for key in ("cases", "same_bytes", "one_line", "lost")]
        step = max(part.get("step", 1) for part in counts["parts"].values())
        share = f" (1 of {step})" if step > 1 else ""
        lines.append(f"| {FAMILIES[name]}{share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def undetected(results: dict[str, Any]) -> str:
    """Return the table of the files in which a flipped bit went unnoticed."""
    lines = ["| in | flips | noticed, or without an effect | unnoticed |", "|---|---:|---:|---|"]
    for part, counts in results.get("bit flips", {"parts": {}})["parts"].items():
        files = ", ".join(f"{number} in `{name}`" for name, number in counts["undetected"].items()) or "none"
        lines.append(f"| {part} | {counts['cases']:,} | {counts['same_bytes'] + counts['one_line']:,} | {files} |")
    return "\n".join(lines)


def with_tables(page: str, results: dict[str, Any]) -> str:
    """Return the page with the tables of the results."""
    for name, text in (("crashes", table(results)), ("flips", undetected(results))):
        begin, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
