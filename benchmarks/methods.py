"""Train every method with its default settings on both real bases, and write the results into the docs.

    make tables

writes benchmarks/results/methods.json and the tables in docs/methods.md, which `make test` compares with the JSON. A
result that is already in the JSON is not measured again, so an interrupted search continues at the next result:

    python benchmarks/methods.py --rates 0.3 1 3 --bases minilm-l6     # 0.3, 1 and 3 times the default learning rate
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
"""Task and training settings of each real base."""

DATA = {
    "tweets": "200 sample tweets, labelled as complaint or no complaint",
    "docstrings": "120 texts of SciPy's documentation, labelled with one of four parts of SciPy",
}
BASELINES = ("untouched base", "linear probe")
KEYS = ("base", "data", "method", "learning_rate", "seed")
"""Fields that identify a result."""

Result = dict[str, Any]
"""Keys and scores of one training run, or of a baseline, as in the JSON."""


@contextmanager
def data_files(data: str) -> Iterator[dict[str, str]]:
    """Provide the files of a data set, by split."""
    splits = ("train", "validation", "test")
    if data == "tweets":
        with as_file(files("peftly") / "sample_data" / "complaints") as tweets:
            yield {split: str(tweets / f"{split}.jsonl") for split in splits}
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder))
            yield {split: str(Path(folder) / f"{split}.jsonl") for split in splits}


def measure(base: str, data: str, method: str, learning_rate: float, seed: int) -> Result:
    """Train one method on one base, and return the scores."""
    from peftly.runs.config import RunConfig
    from peftly.runs.run import run

    with data_files(data) as data_paths, tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(
            {
                "base": base,
                "task": BASES[base]["task"],
                "data": data_paths,
                "method": method,
                "train": {**BASES[base]["train"], "learning_rate": learning_rate, "seed": seed},
                "baselines": False,
                "out": str(Path(folder) / "run"),
            }
        )
        result = run(config, log=print)
    assert result.evaluation is not None
    assert result.training.best is not None
    return {
        "validation_loss": result.training.best.loss,
        "validation_accuracy": result.training.best.accuracy,
        "accuracy": result.evaluation.accuracy,
        "macro_f1": result.evaluation.macro_f1,
        "loss": result.evaluation.loss,
        "best_step": result.training.best_step,
        "parameters": result.parameters,
        "bytes": result.size,
        "seconds": result.training.seconds,
    }


def baseline(base: str, data: str, name: str) -> Result:
    """Score a base without an adapter, or its linear probe."""
    from peftly.runs.baselines import baseline_scores
    from peftly.runs.config import RunConfig
    from peftly.runs.probing import choose_head
    from peftly.runs.run import open_base_and_data

    with data_files(data) as data_paths:
        config = RunConfig.model_validate(
            {"base": base, "task": BASES[base]["task"], "data": data_paths, "method": "lora", "out": "unused"}
        )
        config, opened, loaded = open_base_and_data(config, None, None, print)
        opened, _, probe = choose_head(opened, config, loaded, print, is_given=False)
        scores = baseline_scores(opened, probe, loaded, config, print)[name]
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1}


def baselines_of(base: str) -> tuple[str, ...]:
    """Return the names of the baselines of a base. Without an adapter a new head would give random labels."""
    return BASELINES if BASES[base]["task"] == "causal_lm" else BASELINES[1:]


def results_to_measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the keys (`KEYS`) of all requested results."""
    from peftly import METHODS, load_base

    requested: list[tuple[Any, ...]] = []
    for base in options.bases:
        model = load_base(base, task=BASES[base]["task"], labels=("one", "other")).model
        methods = [
            name for name in options.methods or METHODS if METHODS[name].adapter.unsupported_reason(model) is None
        ]
        for data in options.data:
            requested += [(base, data, name, None, 0) for name in baselines_of(base)]
            for method, factor, seed in itertools.product(methods, options.rates, options.seeds):
                rate = float(f"{METHODS[method].learning_rate * factor:.2g}")
                requested.append((base, data, method, rate, seed))
    return [dict(zip(KEYS, values, strict=True)) for values in requested]


def read() -> list[Result]:
    """Return the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []


def write(results: list[Result]) -> None:
    """Write all results and the settings of the measurement."""
    from peftly.utils.environment import automatic_dtype, environment

    content = {"environment": environment(), "dtype": automatic_dtype(), "bases": BASES, "results": results}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(results: list[Result]) -> str:
    """Return the tables of each base and data set: default learning rates first, then the other learning rates."""
    lines = []
    for base, data in dict.fromkeys((result["base"], result["data"]) for result in results):
        group = [result for result in results if (result["base"], result["data"]) == (base, data)]
        training = BASES[base]["train"]
        note = f"{DATA[data]}; as {BASES[base]['task'].replace('_', ' ')}, {training['epochs']} epochs, batches of "
        lines += [f"## {base}, {data}", "", f"{note}{training['batch_size']}."]
        lines += ["", "| method | accuracy | seeds | learning rate | parameters | bytes | training seconds |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_table_row(seeds) for seeds in _by_method([result for result in group if is_default(result)])]
        lines += _search(group)
        lines.append("")
    return "\n".join(lines)


def _table_row(seeds: list[Result]) -> str:
    """Return the table row of a method from its results with several seeds: mean, and range in brackets."""
    method, accuracy = seeds[0]["method"], _spread([result["accuracy"] for result in seeds])
    if method in BASELINES:
        return f"| {method} | {accuracy} | | | | | |"
    timed = [result["seconds"] for result in seeds if result["seconds"] is not None]
    cells = [f"`{method}`", accuracy, str(len(seeds)), f"{seeds[0]['learning_rate']:g}", f"{seeds[0]['parameters']:,}"]
    cells += [f"{seeds[0]['bytes']:,}", f"{statistics.median(timed):.0f}" if timed else "-"]
    return "| " + " | ".join(cells) + " |"


def _search(results: list[Result]) -> list[str]:
    """Return the table of the methods with several learning rates, for the first seed."""
    first_seed = [result for result in results if result["seed"] == 0]
    searched = [rates for rates in _by_method(first_seed) if len(rates) > 1]
    if not searched:
        return []
    lines = ["", "| method | validation loss at other learning rates, seed 0 |", "|---|---|"]
    for rates in searched:
        losses = {result["learning_rate"]: result["validation_loss"] for result in rates}
        shown = ", ".join(f"{losses[rate]:.3f} at {rate:g}" for rate in sorted(losses))
        lines.append(f"| `{rates[0]['method']}` | {shown} |")
    return lines


def _by_method(results: list[Result]) -> Iterator[list[Result]]:
    """Yield the results of each method, in the order of the registry."""
    from peftly import METHODS

    for method in (*BASELINES, *METHODS):
        if of_method := [result for result in results if result["method"] == method]:
            yield of_method


def is_default(result: Result) -> bool:
    """Return whether a result has the default learning rate of its method."""
    from peftly import METHODS

    method = result["method"]
    return method in BASELINES or result["learning_rate"] == METHODS[method].learning_rate


def _spread(values: list[float]) -> str:
    low, mean, high = (f"{100 * value:.1f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_table(page: str, results: list[Result]) -> str:
    """Return the page with new tables."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + table(results) + "\n" + END + tail


def main() -> None:
    """Measure the missing results, and write the JSON and the page after each result."""
    from peftly import METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0], help="multiples of the method's default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--untimed", action="store_true", help="store no seconds, because the machine is busy")
    options = parser.parse_args()
    results = read()
    for key in results_to_measure(options):
        if any(all(result[field] == value for field, value in key.items()) for result in results):
            continue
        print(f"== {key}", flush=True)
        name = key["method"]
        scores = baseline(key["base"], key["data"], name) if name in BASELINES else measure(**key)
        if options.untimed and "seconds" in scores:
            scores["seconds"] = None
        results.append({**key, **scores})
        write(results)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
