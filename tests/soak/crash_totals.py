"""Counts of what was tried, and the page that quotes them."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "crashes.json"
PAGE = ROOT / "docs" / "robustness.md"
FAMILIES = {
    "kill": "A kill before each file operation",
    "power cut": "A power cut before each file operation, in two models of a disk",
    "random kills": "SIGKILL at a random moment, all methods",
    "command line": "SIGKILL at a random moment, whole commands",
    "exceptions": "An exception or a stop signal at a random moment",
    "full disk": "No space from each file operation on, or at four of them",
    "small disk": "A file system of 21 sizes",
    "bit flips": "One flipped bit in a file",
    "two processes": "Several processes in one folder",
}
BEGIN, END = "<!-- crashes -->", "<!-- end of crashes -->"


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
        assert not self.faults, f"{len(self.faults)} of {self.counts.total()} failed; the first: {self.faults[0]}"
        write(self)


def write(family: Family) -> None:
    """Write the counts of a part of a family into the results."""
    results = read()
    known = results.setdefault(family.name, {"parts": {}})
    known["parts"][family.part] = {
        "cases": family.counts.total(),
        "same_bytes": family.counts["same_bytes"],
        "one_line": family.counts["one_line"],
        "undetected": dict(family.undetected),
        "lost": len(family.faults),
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
        lines.append(f"| {FAMILIES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, results: dict[str, Any]) -> str:
    """Return the page with the table of the results."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
