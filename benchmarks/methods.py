"""Train every method with its default settings on both real bases, and put the figures into the docs.

    make tables

writes benchmarks/results/methods.json and the table in docs/methods.md, which `make test` compares with it. A line that
is in the JSON already is not measured again, so that an interrupted search goes on where it was:

    python benchmarks/methods.py --rates 0.3 1 3 --bases minilm-l6     # three times slower and faster than the default
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from docstrings import write_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- table: methods -->\n", "<!-- end of table -->\n"
BASES: dict[str, dict[str, Any]] = {
    "minilm-l6": {"task": "sequence_classification", "train": {"epochs": 10, "batch_size": 8}},
    "smollm2-135m": {"task": "causal_lm", "train": {"epochs": 2, "batch_size": 4}},
}
"""The real bases: what they learn the rows as, and for how long."""

DATA = {
    "tweets": "200 sample tweets, a complaint or none",
    "docstrings": "120 texts of SciPy's documentation, from which of four parts of it",
}
UNTOUCHED = "untouched base"
KEYS = ("base", "data", "method", "learning_rate", "seed")


@contextmanager
def rows_of(data: str) -> Iterator[dict[str, str]]:
    """Give the files of a data set, by split."""
    splits = ("train", "validation", "test")
    if data == "tweets":
        with as_file(files("peftly") / "sample_data" / "complaints") as rows:
            yield {split: str(rows / f"{split}.jsonl") for split in splits}
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder))
            yield {split: str(Path(folder) / f"{split}.jsonl") for split in splits}


def measure(base: str, data: str, method: str, learning_rate: float, seed: int) -> dict[str, Any]:
    """Train one method on one base and return its line."""
    from peftly.runs.config import RunConfig
    from peftly.runs.run import run

    with rows_of(data) as rows, tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(
            {
                "base": base,
                "task": BASES[base]["task"],
                "data": rows,
                "method": method,
                "train": {**BASES[base]["train"], "learning_rate": learning_rate, "seed": seed},
                "out": str(Path(folder) / "run"),
            }
        )
        found = run(config, say=print)
    assert found.evaluation is not None
    assert found.training.best is not None
    return {
        "validation_loss": found.training.best.loss,
        "validation_accuracy": found.training.best.accuracy,
        "accuracy": found.evaluation.accuracy,
        "macro_f1": found.evaluation.macro_f1,
        "loss": found.evaluation.loss,
        "best_step": found.training.best_step,
        "parameters": found.parameters,
        "bytes": found.size,
        "seconds": found.training.seconds,
    }


def untouched(base: str, data: str) -> dict[str, Any]:
    """Score a base without any adapter; for a classifier that is a new head, so the largest label's share instead."""
    from peftly import evaluate, load_base
    from peftly.data import DataConfig, load_data

    with rows_of(data) as rows:
        model, tokenizer = load_base(base)
        loaded = load_data(DataConfig(train=rows["train"], test=rows["test"]), tokenizer)
    assert loaded.test is not None
    if BASES[base]["task"] == "causal_lm":
        found = evaluate(model, tokenizer, loaded.test, loaded.row_format)
        return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "loss": found.loss}
    labels = [example.label for example in loaded.test.examples]
    return {"accuracy": max(labels.count(label) for label in set(labels)) / len(labels)}


def lines_to_measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the keys of all lines that are asked for, `KEYS`."""
    from peftly import METHODS, load_base

    wanted: list[tuple[Any, ...]] = []
    for base in asked.bases:
        model = load_base(base, task=BASES[base]["task"], labels=("one", "other")).model
        fitting = [name for name in asked.methods or METHODS if METHODS[name].adapter.misfit(model) is None]
        for data in asked.data:
            wanted.append((base, data, UNTOUCHED, None, 0))
            for method, factor, seed in itertools.product(fitting, asked.rates, asked.seeds):
                rate = float(f"{METHODS[method].learning_rate * factor:.2g}")
                wanted.append((base, data, method, rate, seed))
    return [dict(zip(KEYS, line, strict=True)) for line in wanted]


def read() -> list[dict[str, Any]]:
    """Return the lines that are there."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["lines"] if RESULTS.exists() else []


def write(lines: list[dict[str, Any]]) -> None:
    """Write all lines, and how they were measured."""
    from peftly.utils.environment import automatic_dtype, environment

    found = {"environment": environment(), "dtype": automatic_dtype(), "bases": BASES, "lines": lines}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the docs' tables: for each base and data set the default rates, and then the rates that were tried."""
    parts = []
    for base, data in dict.fromkeys((line["base"], line["data"]) for line in lines):
        own = [line for line in lines if (line["base"], line["data"]) == (base, data)]
        length = BASES[base]["train"]
        parts += [f"## {base}, {data}", ""]
        parts += [f"{DATA[data]}; as {BASES[base]['task'].replace('_', ' ')}, {length['epochs']} epochs, batches of "]
        parts[-1] += f"{length['batch_size']}."
        parts += ["", "| method | accuracy | seeds | learning rate | parameters | bytes | training seconds |"]
        parts += ["|---|---|---|---|---|---|---|"]
        parts += [_line(rows) for rows in _by_method([line for line in own if is_default(line)])]
        parts += _search(own)
        parts.append("")
    return "\n".join(parts)


def _line(rows: list[dict[str, Any]]) -> str:
    """Return a method's line: the mean over its seeds, and the range in brackets."""
    method, accuracy = rows[0]["method"], _spread([row["accuracy"] for row in rows])
    if method == UNTOUCHED:
        return f"| {method} | {accuracy} | | | | | |"
    timed = [row["seconds"] for row in rows if row["seconds"] is not None]
    cells = [f"`{method}`", accuracy, str(len(rows)), f"{rows[0]['learning_rate']:g}", f"{rows[0]['parameters']:,}"]
    cells += [f"{rows[0]['bytes']:,}", f"{statistics.median(timed):.0f}" if timed else "-"]
    return "| " + " | ".join(cells) + " |"


def _search(lines: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the methods of which several rates were tried with the first seed."""
    first = [line for line in lines if line["seed"] == 0]
    tried = [rows for rows in _by_method(first) if len(rows) > 1]
    if not tried:
        return []
    found = ["", "| method | validation loss at other learning rates, seed 0 |", "|---|---|"]
    for rows in tried:
        losses = {row["learning_rate"]: row["validation_loss"] for row in rows}
        shown = ", ".join(f"{losses[rate]:.3f} at {rate:g}" for rate in sorted(losses))
        found.append(f"| `{rows[0]['method']}` | {shown} |")
    return found


def _by_method(lines: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines of each method, in the registry's order."""
    from peftly import METHODS

    for method in (UNTOUCHED, *METHODS):
        if rows := [line for line in lines if line["method"] == method]:
            yield rows


def is_default(line: dict[str, Any]) -> bool:
    """Whether a line is of a method's default learning rate."""
    from peftly import METHODS

    method = line["method"]
    return method == UNTOUCHED or line["learning_rate"] == METHODS[method].learning_rate


def _spread(values: list[float]) -> str:
    low, mean, high = (f"{100 * value:.1f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_table(page: str, lines: list[dict[str, Any]]) -> str:
    """Return the page with its tables made anew."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + table(lines) + "\n" + END + tail


def main() -> None:
    """Measure what is missing, and write the JSON and the page after every line."""
    from peftly import METHODS

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    options.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    options.add_argument("--methods", nargs="+", choices=METHODS)
    options.add_argument("--rates", nargs="+", type=float, default=[1.0], help="multiples of the method's default")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--untimed", action="store_true", help="the machine does other things: note no seconds")
    asked = options.parse_args()
    lines = read()
    for key in lines_to_measure(asked):
        if any(all(line[part] == value for part, value in key.items()) for line in lines):
            continue
        print(f"== {key}", flush=True)
        found = untouched(key["base"], key["data"]) if key["method"] == UNTOUCHED else measure(**key)
        if asked.untimed and "seconds" in found:
            found["seconds"] = None
        lines.append({**key, **found})
        write(lines)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
