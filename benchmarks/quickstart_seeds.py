"""Run the quickstart with three seeds, test its gains over the base, and put the figures into the docs.

    make tables

writes benchmarks/results/quickstart.json, the table in docs/quickstart.md, which `make test` compares with it, and the
picture in the README.
"""

import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quickstart.json"
PAGE = ROOT / "docs" / "quickstart.md"
PICTURE = ROOT / "docs" / "quickstart.svg"
BEGIN, END = "<!-- table: quickstart -->\n", "<!-- end of table -->\n"
SEEDS = (0, 1, 2)
BASE = "untouched base"


def measure() -> dict[str, Any]:
    """Run every seed and return what the table needs."""
    from rich.console import Console

    from peftly.runs.quickstart import quickstart
    from peftly.utils.environment import automatic_dtype, environment

    screen = Console()
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            results = quickstart(
                Path(folder) / "quickstart",
                base_spec="smollm2-135m",
                seed=seed,
                epochs=None,
                limit=None,
                json_file=None,
                screen=screen,
            )
            if seed == SEEDS[0]:
                draw(results)
            runs.append(summary(seed, results, time.perf_counter() - began))
    return {"environment": environment(), "dtype": automatic_dtype(), "runs": runs}


def draw(results: dict[str, Any]) -> None:
    """Draw the table that the quickstart prints, for the README."""
    from rich.console import Console

    from peftly.report import comparison_table

    screen = Console(record=True, width=100, file=io.StringIO())
    screen.print(comparison_table(results["rows"]))
    PICTURE.write_text(screen.export_svg(title="make quickstart"), encoding="utf-8")


def summary(seed: int, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return one seed's scores, with McNemar's test of each method against the base."""
    gold = results["gold"]
    base = next(row for row in results["rows"] if row["name"] == BASE)
    rows = []
    for row in results["rows"]:
        kept = {key: row[key] for key in ("name", "accuracy", "macro_f1", "parameters", "bytes", "seconds")}
        if row is not base:
            kept |= mcnemar(gold, base["predictions"], row["predictions"])
        rows.append(kept)
    return {"seed": seed, "seconds": seconds, "test_rows": len(gold), "rows": rows}


def mcnemar(gold: list[str], before: list[str], after: list[str]) -> dict[str, Any]:
    """Return how many rows were mended and spoiled, and the exact two-sided p that this is chance."""
    from scipy.stats import binomtest

    mended = sum(b != g == a for g, b, a in zip(gold, before, after, strict=True))
    spoiled = sum(a != g == b for g, b, a in zip(gold, before, after, strict=True))
    return {"mended": mended, "spoiled": spoiled, "p": float(binomtest(mended, mended + spoiled).pvalue)}


def table(results: dict[str, Any]) -> str:
    """Return the docs' table: the mean over the seeds, and the range in brackets."""
    lines = [
        "| | accuracy | macro-F1 | gain over the base | McNemar p, largest | parameters | bytes | training seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = results["runs"]
    base = statistics.mean(_rows(runs, BASE, "accuracy"))
    for row in runs[0]["rows"]:
        name, is_base = row["name"], row["name"] == BASE
        accuracy = _rows(runs, name, "accuracy")
        cells = [name, _spread(accuracy), _spread(_rows(runs, name, "macro_f1"))]
        cells += ["", ""] if is_base else [f"{100 * (statistics.mean(accuracy) - base):+.1f} points"]
        cells += [] if is_base else [f"{max(_rows(runs, name, 'p')):.1g}"]
        cells += [f"{row['parameters']:,}", f"{row['bytes']:,}"]
        cells += [""] if is_base else [f"{statistics.median(_rows(runs, name, 'seconds')):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    seconds = statistics.median(run["seconds"] for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    machine = results["environment"]
    note = (
        f"Seeds {seeds}; {runs[0]['test_rows']} test rows. The whole quickstart took {seconds:.0f} seconds (median) in "
    )
    note += f"{results['dtype']} on {machine['cpu_cores']} cores ({machine['cpu']}, bf16 instructions: "
    note += f"{machine['cpu_bf16'] or 'none'})."
    return "\n".join([*lines, "", note, ""])


def _rows(runs: list[dict[str, Any]], name: str, key: str) -> list[float]:
    return [row[key] for run in runs for row in run["rows"] if row["name"] == name]


def _spread(values: list[float]) -> str:
    low, mean, high = (f"{100 * value:.1f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_table(page: str, results: dict[str, Any]) -> str:
    """Return the page with its table made anew."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + table(results) + "\n" + END + tail


def main() -> None:
    """Measure, and write the JSON and the page."""
    results = measure()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
