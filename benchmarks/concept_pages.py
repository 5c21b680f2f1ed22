"""Write the tables of docs/concepts/, docs/which_method.md and docs/how_it_works.md from the committed results.

    python benchmarks/concept_pages.py

Nothing is measured here. The figures are those of benchmarks/results/: parameter_counts.json, methods.json,
memory.json, speed.json, qlora.json and encoders.json. `make test` compares the pages with them.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders import gain

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
METHODS_OF = {
    "prompt_tuning": ("prompt_tuning",),
    "p_tuning": ("p_tuning",),
    "prefix_tuning": ("prefix_tuning",),
    "p_tuning_v2": ("p_tuning_v2",),
    "adapter": ("adapter",),
    "lora": ("lora",),
    "dora": ("dora",),
    "qlora": ("lora",),
    "ia3": ("ia3",),
    "others": ("bitfit", "selective", "full"),
}
"""Methods of each page."""
JOBS = {
    "prompt_tuning": ("W1", "W1L", "W2"),
    "p_tuning": ("W6P",),
    "prefix_tuning": ("W6",),
    "lora": ("W3", "W5", "W8"),
    "dora": ("W4", "W4D"),
    "qlora": ("W3Q",),
    "how_it_works": ("W1", "W1L", "W8"),
}
"""Jobs of speed.json of each page."""
KINDS = {"none": "no quantisation", "int8": "8 bits", "nf4": "NF4", "nf4, init: qera": "NF4, `init: qera`"}
"""Quantisations of qlora.json, in words."""
PROBE = "linear probe"
WHICH, INSIDE = "which_method", "how_it_works"
"""Pages outside of docs/concepts: the comparison of the methods, and how peftly works inside."""

SENTENCES = ("films", "products", "editorials", "posts")
"""Data sets of encoders.json on which every method was trained."""

Row = list[str]


def read(name: str) -> Any:
    """Return the content of a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def page(name: str) -> Path:
    """Return the file of a page."""
    return DOCS / f"{name}.md" if name.startswith((WHICH, INSIDE)) else DOCS / "concepts" / f"{name}.md"


def parameters(name: str) -> Iterator[Row]:
    """Yield the rows of the table of trained parameters."""
    methods = METHODS_OF[name]
    yield ["model", *(["method"] if len(methods) > 1 else []), "settings", "calculation", "trained", "of all"]
    for found in read("parameter_counts")["results"]:
        if found["method"] in methods and "trained" in found:
            share = f"{100 * found['trained'] / found['total']:.4f}%"
            label = [f"`{found['method']}`"] if len(methods) > 1 else []
            yield [found["model"], *label, found["settings"], found["formula"], f"{found['trained']:,}", share]


def quantised_bytes(name: str) -> Iterator[Row]:
    """Yield the rows of the table of the bytes of each model."""
    yield ["model", "parameters", "bfloat16", "NF4", "saved"]
    for model, found in read("parameter_counts")["models"].items():
        plain, quantised = (found["bytes"][kind] for kind in ("bfloat16", "nf4"))
        sizes = [f"{size / 1e9:.2f} GB" for size in (plain, quantised)]
        yield [model, f"{found['parameters']:,}", *sizes, f"{1 - quantised / plain:.0%}"]


def accuracy(name: str) -> Iterator[Row]:
    """Yield the rows of the table of accuracies with default settings, beside those of other methods."""
    from peftly import METHODS

    results = read("methods")["results"]
    columns = list(dict.fromkeys([PROBE, *METHODS_OF[name], "lora", "full"]))
    yield ["base", "data", *(column if column == PROBE else f"`{column}`" for column in columns)]
    for base, data in dict.fromkeys((result["base"], result["data"]) for result in results):
        cells = []
        for column in columns:
            rates = (None, None if column == PROBE else METHODS[column].learning_rate)
            found = [
                result["accuracy"]
                for result in results
                if (result["base"], result["data"], result["method"]) == (base, data, column)
                and result["learning_rate"] in rates
            ]
            cells.append(_spread([100 * value for value in found], ".1f") if found else "-")
        if any(cell != "-" for cell, column in zip(cells, columns, strict=True) if column in METHODS_OF[name]):
            yield [base, data, *cells]


def memory(name: str) -> Iterator[Row]:
    """Yield the rows of the table of measured peaks of memory."""
    columns = list(dict.fromkeys([*METHODS_OF[name], "lora", "full"]))
    results = [result for result in read("memory")["results"] if not result["variant"]]
    yield ["base", "texts", *(f"`{column}`" for column in columns)]
    for base, rows in dict.fromkeys((result["base"], result["rows"]) for result in results):
        peaks = {
            result["method"]: f"{result['measured'] / 1e6:,.0f} MB"
            for result in results
            if (result["base"], result["rows"]) == (base, rows)
        }
        if METHODS_OF[name][0] in peaks or len(METHODS_OF[name]) > 1:
            texts = {"long": "128 tokens, float32", "tweets": "tweets, bfloat16"}[rows]
            yield [base, texts, *(peaks.get(column, "-") for column in columns)]


def speed(name: str) -> Iterator[Row]:
    """Yield the rows of the table of the seconds and the memory of a step, beside PEFT's best setting."""
    yield ["job", "dtype", "PEFT, best", "peftly", "times as fast"]
    for result in read("speed")["results"]:
        if result["job"] in JOBS[name]:
            ratio = f"{result['ratios']['PEFT, best']['median']:.2f}"
            cells = [
                f"{statistics.median(result['seconds'][who]):.2f} s, {result['memory'][who] / 2**20:,.0f} MiB"
                for who in ("PEFT, best", "peftly")
            ]
            yield [result["description"], result["dtype"], *cells, ratio]


def quantised_runs(name: str) -> Iterator[Row]:
    """Yield the rows of the table of trainings over quantised bases."""
    yield ["base", "MB of the base", "validation loss", "accuracy", "training seconds"]
    runs = read("qlora")["runs"]
    for kind in dict.fromkeys(run["kind"] for run in runs):
        group = [run for run in runs if run["kind"] == kind]
        cells = [f"{group[0]['base_bytes'] / 1e6:.0f}", _spread([run["loss"] for run in group], ".3f")]
        cells += [_spread([100 * run["accuracy"] for run in group], ".0f")]
        yield [KINDS[kind], *cells, f"{statistics.median(run['seconds'] for run in group):.0f}"]


def _gains(data: str, rows: int, method: str) -> list[float]:
    """Return the points over the linear probe of trainings with 5 epochs and the default settings."""
    return [
        gain(result)
        for result in read("encoders")["results"]
        if (result["data"], result["rows"], result["method"], result["settings"]) == (data, rows, method, {})
        and result["head"] == "mean"
    ]


def classifiers(name: str) -> Iterator[Row]:
    """Yield the rows of the table of gains of classifiers over the linear probe, with 200 examples."""
    from peftly import METHODS

    yield ["method", *SENTENCES, "mean"]
    for method in METHODS:
        means = [statistics.mean(_gains(data, 200, method)) for data in SENTENCES]
        yield [f"`{method}`", *(f"{value:+.1f}" for value in means), f"{statistics.mean(means):+.1f}"]


def amounts(name: str) -> Iterator[Row]:
    """Yield the rows of the table of gains by the number of examples: means over three data sets."""
    sets = ("films", "products", "posts")
    yield ["examples", PROBE, "`prompt_tuning`", "`lora`"]
    for rows in (50, 200, 500):
        results = [result for result in read("encoders")["results"] if result["rows"] == rows]
        probes = [
            statistics.mean(100 * result["probe_accuracy"] for result in results if result["data"] == data)
            for data in sets
        ]
        cells = []
        for method in ("prompt_tuning", "lora"):
            groups = [_gains(data, rows, method) for data in sets]
            cells.append(f"{statistics.mean(map(statistics.mean, groups)):+.1f}" if all(groups) else "-")
        yield [str(rows), f"{statistics.mean(probes):.1f}", *cells]


def generators(name: str) -> Iterator[Row]:
    """Yield the rows of the table of a causal language model that writes labels, with default settings."""
    from peftly import METHODS

    results = [result for result in read("methods")["results"] if result["base"] == "smollm2-135m"]
    yield ["method", "tweets", "docstrings", "training seconds", "bytes"]
    for method in ("untouched base", PROBE, *METHODS):
        rate = METHODS[method].learning_rate if method in METHODS else None
        found = {
            data: [
                result
                for result in results
                if (result["data"], result["method"], result["learning_rate"]) == (data, method, rate)
            ]
            for data in ("tweets", "docstrings")
        }
        if all(found.values()):
            cells = [_spread([100 * result["accuracy"] for result in group], ".1f") for group in found.values()]
            first = found["tweets"][0]
            seconds = f"{first['seconds']:.0f}" if first.get("seconds") else "-"
            size = f"{first['bytes']:,}" if "bytes" in first else "-"
            yield [f"`{method}`" if method in METHODS else method, *cells, seconds, size]


def peaks(name: str) -> Iterator[Row]:
    """Yield the rows of the table of measured peaks of memory of all methods."""
    from peftly import METHODS

    columns = (("minilm-l6", "long"), ("smollm2-135m", "long"), ("smollm2-135m", "tweets"))
    results = read("memory")["results"]
    yield ["method", "minilm-l6, 128 tokens", "smollm2-135m, 128 tokens", "smollm2-135m, tweets"]
    variants = [(method, "") for method in METHODS] + [("lora", "checkpointing"), ("lora", "nf4")]
    for method, variant in variants:
        found = {
            (result["base"], result["rows"]): f"{result['measured'] / 1e6:,.0f} MB"
            for result in results
            if (result["method"], result["variant"]) == (method, variant)
        }
        yield [f"`{method}`" + (f", {variant}" if variant else ""), *(found.get(column, "-") for column in columns)]


def tenants(name: str) -> Iterator[Row]:
    """Yield the rows of the table of generation with several adapters in a batch."""
    yield ["job", "dtype", "PEFT", "peftly", "times as fast"]
    for result in read("speed")["results"]:
        if result["job"] == "W7":
            seconds = [f"{statistics.median(result['seconds'][who]):.2f} s" for who in ("PEFT, classic", "peftly")]
            ratio = f"{result['ratios']['PEFT, classic']['median']:.2f}"
            yield [result["description"], result["dtype"], *seconds, ratio]


TABLES = {
    "parameters": parameters,
    "accuracy": accuracy,
    "memory": memory,
    "speed": speed,
    "bytes": lambda name: quantised_bytes(name),
    "quantised": quantised_runs,
    "overview": lambda name: overview(),
    "classifiers": classifiers,
    "amounts": amounts,
    "generators": generators,
    "peaks": peaks,
    "tenants": tenants,
}


def overview() -> Iterator[Row]:
    """Yield the rows of the table on the first page of the concepts: each method with its default settings."""
    from peftly import METHODS

    found = {
        (result["model"], result["method"], result["settings"]): result
        for result in read("parameter_counts")["results"]
    }
    models = list(read("parameter_counts")["models"])
    yield ["method", *models, "can be merged"]
    for name, method in METHODS.items():
        cells = []
        for model in models:
            first = next(result for key, result in found.items() if key[:2] == (model, name))
            cells.append(f"{first['trained']:,}" if "trained" in first else "-")
        yield [f"`{name}`", *cells, "yes" if method.mergeable else "no"]


def with_tables(name: str, text: str) -> str:
    """Return a page with new tables between its markers.

    Raises:
        KeyError: the page has a table of another name.
    """

    def written(match: re.Match[str]) -> str:
        rows = list(TABLES[match[1]](name))
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        table = "\n".join("|" + "|".join(row) + "|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in lines)
        return f"<!-- table: {match[1]} -->\n\n{table}\n\n<!-- end of table -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", written, text, flags=re.DOTALL)


def _spread(values: list[float], digits: str) -> str:
    low, mean, high = (format(value, digits) for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def main() -> None:
    """Write the tables of all pages."""
    for name in ("index", WHICH, INSIDE, *METHODS_OF):
        if not page(name).exists():
            continue
        text = page(name).read_text(encoding="utf-8")
        page(name).write_text(with_tables(name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
