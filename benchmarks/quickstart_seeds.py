"""Run both tasks of the quickstart with three seeds, test the gains over the base, and write the results into the docs.

    make tables

writes benchmarks/results/quickstart.json, the tables in docs/quickstart.md, which `make test` compares with the JSON,
and the picture in the README. `python benchmarks/quickstart_seeds.py --tasks messages` measures one task,
`--float32` only the seconds of the messages in float32, and `--pages` writes the tables from the JSON.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quickstart.json"
PAGE = ROOT / "docs" / "quickstart.md"
PICTURE = ROOT / "docs" / "quickstart.svg"
END = "<!-- end of table -->\n"
SEEDS = (0, 1, 2)
TASKS: tuple[Literal["messages", "tweets"], ...] = ("messages", "tweets")
BASE = "untouched base"


def measure(task: Literal["messages", "tweets"]) -> dict[str, Any]:
    """Run the quickstart of a task with every seed, and return the figures of its table."""
    from peftly.utils.environment import automatic_dtype, environment

    runs = []
    for seed in SEEDS:
        results, seconds = timed(task, seed, "auto")
        if (task, seed) == (TASKS[0], SEEDS[0]):
            draw(results)
        runs.append(summary(seed, results, seconds))
    return {"environment": environment(), "dtype": automatic_dtype(), "runs": runs}


def timed(
    task: Literal["messages", "tweets"], seed: int, dtype: Literal["auto", "float32"]
) -> tuple[dict[str, Any], float]:
    """Run the quickstart once, and return its results and its seconds, from the opening of the base to the report."""
    from rich.console import Console

    from peftly.runs.quickstart import quickstart

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results = quickstart(
            Path(folder) / "quickstart",
            task=task,
            base_spec="smollm2-135m",
            dtype=dtype,
            seed=seed,
            screen=Console(),
        )
        return results, time.perf_counter() - start


def draw(results: dict[str, Any]) -> None:
    """Write the picture of the README: the tables that the quickstart ends with."""
    from rich.console import Console

    from peftly.runs.quickstart import print_summary

    screen = Console(record=True, width=100, file=io.StringIO())
    print_summary(results, screen)
    PICTURE.write_text(screen.export_svg(title="peftly quickstart"), encoding="utf-8")


def summary(seed: int, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the scores of one seed, with McNemar's test of each method against the base."""
    gold = results["gold"]
    base = next(row for row in results["rows"] if row["name"] == BASE)
    rows = []
    for row in results["rows"]:
        scores = {key: row[key] for key in ("name", "accuracy", "macro_f1", "parameters", "bytes", "seconds")}
        if row is not base:
            scores |= mcnemar(gold, base["predictions"], row["predictions"])
        rows.append(scores)
    return {"seed": seed, "seconds": seconds, "test_examples": len(gold), "rows": rows}


def mcnemar(gold: list[str], before: list[str], after: list[str]) -> dict[str, Any]:
    """Return McNemar's exact test of two sets of predictions.

    Args:
        gold: correct label of each example.
        before: predictions of the base.
        after: predictions with the adapter.

    Returns:
        `gained`: number of examples that only `after` predicts correctly; `lost`: number of examples that only `before`
        predicts correctly; `p`: two-sided p-value.
    """
    from scipy.stats import binomtest

    gained = sum(b != g == a for g, b, a in zip(gold, before, after, strict=True))
    lost = sum(a != g == b for g, b, a in zip(gold, before, after, strict=True))
    return {"gained": gained, "lost": lost, "p": float(binomtest(gained, gained + lost).pvalue)}


def table(results: dict[str, Any]) -> str:
    """Return the table of the docs: means over the seeds, ranges in brackets."""
    lines = [
        "| | accuracy | macro-F1 | gain over the base | McNemar p, largest | parameters | bytes | training seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = results["runs"]
    base = statistics.mean(_values(runs, BASE, "accuracy"))
    for row in runs[0]["rows"]:
        name, is_base = row["name"], row["name"] == BASE
        accuracy = _values(runs, name, "accuracy")
        cells = [name, _spread(accuracy), _spread(_values(runs, name, "macro_f1"))]
        cells += ["", ""] if is_base else [f"{100 * (statistics.mean(accuracy) - base):+.1f} points"]
        cells += [] if is_base else [f"{max(_values(runs, name, 'p')):.1g}"]
        cells += [f"{row['parameters']:,}", f"{row['bytes']:,}"]
        seconds = [value for value in _values(runs, name, "seconds") if value is not None]
        cells += [f"{statistics.median(seconds):.0f}" if seconds else ""]
        lines.append("| " + " | ".join(cells) + " |")
    whole = statistics.median(run["seconds"] for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    machine = results["environment"]
    cpu = f"{machine['cpu_cores']} cores ({machine['cpu']}, bf16 instructions: {machine['cpu_bf16'] or 'none'})"
    note = f"Seeds {seeds}; {runs[0]['test_examples']} test examples. "
    note += f"The whole quickstart took {whole:.0f} seconds (median) in {results['dtype']} on {cpu}."
    if "float32" in results:
        note += f" In float32 on the same cores, seed {results['float32']['seed']} took"
        note += f" {results['float32']['seconds']:.0f} seconds."
    return "\n".join([*lines, "", note, ""])


def _values(runs: list[dict[str, Any]], name: str, key: str) -> list[float]:
    return [row[key] for run in runs for row in run["rows"] if row["name"] == name]


def _spread(values: list[float]) -> str:
    low, mean, high = (f"{100 * value:.1f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_table(page: str, results: dict[str, Any]) -> str:
    """Return the page with a new table of each task that was measured."""
    for task in TASKS:
        if task in results:
            begin = f"<!-- table: quickstart {task} -->\n"
            head, rest = page.split(begin)
            _, tail = rest.split(END, 1)
            page = head + begin + "\n" + table(results[task]) + "\n" + END + tail
    return page


def main() -> None:
    """Measure all seeds, and write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--float32", action="store_true", help="measure the seconds of the messages in float32 only")
    parser.add_argument("--pages", action="store_true", help="measure nothing, write the tables from the JSON")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    if not arguments.pages and not arguments.float32:
        for task in arguments.tasks:
            results[task] = measure(task)
            write(results)
    if not arguments.pages and TASKS[0] in arguments.tasks:
        _, seconds = timed(TASKS[0], SEEDS[0], "float32")
        results[TASKS[0]]["float32"] = {"seed": SEEDS[0], "seconds": seconds}
    write(results)
    for task in results:
        print(table(results[task]))


def write(results: dict[str, Any]) -> None:
    """Write the JSON and the tables of the page."""
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
