"""Train every method with its default settings on both real bases, and put the figures into the docs.

    make tables

writes benchmarks/results/methods.json and the table in docs/methods.md, which `make test` compares with it. A line that
is in the JSON already is not measured again, so that an interrupted search goes on where it was:

    python benchmarks/methods.py --rates 0.3 1 3 --bases minilm-l6     # three times as fast, as slow, as the default
"""

import argparse
import json
import statistics
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- table: methods -->\n", "<!-- end of table -->\n"
BASES: dict[str, dict[str, Any]] = {
    "minilm-l6": {"task": "sequence_classification", "train": {"epochs": 10, "batch_size": 8}},
    "smollm2-135m": {"task": "causal_lm", "train": {"epochs": 2, "batch_size": 4}},
}
"""The real bases: what they learn the tweets as, and for how long."""

UNTOUCHED = "untouched base"


def measure(base: str, method: str, rate: float | None, seed: int) -> dict[str, Any]:
    """Train one method on one base and return its line."""
    from peftly.config import RunConfig
    from peftly.run import run

    with as_file(files("peftly") / "sample_data" / "complaints") as rows, tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(
            {
                "base": base,
                "task": BASES[base]["task"],
                "data": {split: str(rows / f"{split}.jsonl") for split in ("train", "validation", "test")},
                "method": method,
                "train": {**BASES[base]["train"], "learning_rate": rate, "seed": seed},
                "out": str(Path(folder) / "run"),
            }
        )
        found = run(config, say=print)
    assert found.evaluation is not None
    return {
        "accuracy": found.evaluation.accuracy,
        "macro_f1": found.evaluation.macro_f1,
        "loss": found.evaluation.loss,
        "learning_rate": found.training.learning_rate,
        "best_step": found.training.best_step,
        "parameters": found.parameters,
        "bytes": found.size,
        "seconds": found.training.seconds,
    }


def untouched(base: str) -> dict[str, Any]:
    """Score a base without any adapter; for a classifier that is a new head, so the largest label's share instead."""
    from peftly import evaluate, load_base
    from peftly.data import DataConfig, load_data

    with as_file(files("peftly") / "sample_data" / "complaints") as rows:
        model, tokenizer = load_base(base)
        settings = DataConfig(train=str(rows / "train.jsonl"), test=str(rows / "test.jsonl"))
        data = load_data(settings, tokenizer)
    assert data.test is not None
    if BASES[base]["task"] == "causal_lm":
        found = evaluate(model, tokenizer, data.test, data.shape)
        return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "loss": found.loss}
    labels = [example.label for example in data.test.examples]
    return {"accuracy": max(labels.count(label) for label in set(labels)) / len(labels)}


def lines_to_measure(bases: list[str], factors: list[float], seeds: list[int]) -> list[dict[str, Any]]:
    """Return the keys of all lines that are asked for: base, method, rate as a multiple of the default, and seed."""
    from peftly import METHODS, load_base

    wanted = []
    for base in bases:
        model = load_base(base, task=BASES[base]["task"], labels=("complaint", "no complaint")).model
        wanted.append({"base": base, "method": UNTOUCHED, "factor": 1.0, "seed": 0})
        fitting = [name for name, method in METHODS.items() if method.adapter.misfit(model) is None]
        wanted += [
            {"base": base, "method": name, "factor": factor, "seed": seed}
            for factor in factors
            for name in fitting
            for seed in seeds
        ]
    return wanted


def read() -> list[dict[str, Any]]:
    """Return the lines that are there."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["lines"] if RESULTS.exists() else []


def write(lines: list[dict[str, Any]]) -> None:
    """Write all lines, and how they were measured."""
    from peftly.environment import automatic_dtype, environment

    found = {"environment": environment(), "dtype": automatic_dtype(), "bases": BASES, "lines": lines}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the docs' tables, one for each base: the mean over the seeds, and the range in brackets."""
    parts = []
    for base in dict.fromkeys(line["base"] for line in lines):
        own = [line for line in lines if line["base"] == base and line["factor"] == 1.0]
        seeds = sorted({line["seed"] for line in own if line["method"] != UNTOUCHED})
        parts += [f"## {base}, as {BASES[base]['task'].replace('_', ' ')}", ""]
        parts += ["| method | accuracy | learning rate | parameters | bytes | training seconds |"]
        parts += ["|---|---|---|---|---|---|"]
        for method in dict.fromkeys(line["method"] for line in own):
            rows = [line for line in own if line["method"] == method]
            cells = [method if method == UNTOUCHED else f"`{method}`", _spread([row["accuracy"] for row in rows])]
            if method == UNTOUCHED:
                cells += ["", "", "", ""]
            else:
                cells += [f"{rows[0]['learning_rate']:g}", f"{rows[0]['parameters']:,}", f"{rows[0]['bytes']:,}"]
                timed = [row["seconds"] for row in rows if row["seconds"] is not None]
                cells += [f"{statistics.median(timed):.0f}" if timed else "-"]
            parts.append("| " + " | ".join(cells) + " |")
        length = BASES[base]["train"]
        told = f"{length['epochs']} epochs, batches of {length['batch_size']}"
        parts += ["", f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {told}.", ""]
    return "\n".join(parts)


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
    options.add_argument("--rates", nargs="+", type=float, default=[1.0], help="multiples of the method's default")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--untimed", action="store_true", help="the machine does other things: note no seconds")
    asked = options.parse_args()
    lines = read()
    for key in lines_to_measure(asked.bases, asked.rates, asked.seeds):
        if any(all(line[part] == value for part, value in key.items()) for line in lines):
            continue
        print(f"== {key}", flush=True)
        if key["method"] == UNTOUCHED:
            found = untouched(key["base"])
        else:
            rate = METHODS[key["method"]].learning_rate * key["factor"]
            found = measure(key["base"], key["method"], rate, key["seed"])
        if asked.untimed and "seconds" in found:
            found["seconds"] = None
        lines.append({**key, **found})
        write(lines)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
