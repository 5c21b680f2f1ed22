"""Train methods on small sets of labelled texts with an encoder, and compare them with the linear probe of their start.

    python benchmarks/encoders.py --methods lora prompt_tuning

writes benchmarks/results/encoders.json and the table in docs/heads.md, which `make test` compares with the JSON. A
result that is already in it is not measured again. Each result has the scores after every epoch, on the validation
and on the test rows, so that rules for epochs and stopping can be compared without training again. `--set` gives
training settings other than the defaults, which are part of the key of a result: those of `train`, `rate` (a factor
of the method's default learning rate) and `head_rate` (`HEAD_RATE`). A result without `epochs` among its settings has
5.

The sentiment sets are in the source archive of vaderSentiment 3.3.2 on the package index (`additional_resources`),
rated by twenty people; the label is the sign of the mean rating, without ratings from -0.5 to 0.5. The archive is
fetched to the cache of peftly; this repository has no copy.
"""

import argparse
import io
import itertools
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import docstrings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
PAGE = ROOT / "docs" / "heads.md"
BEGIN, END = "<!-- table: encoders -->\n", "<!-- end of table -->\n"
ARCHIVE = "vaderSentiment-3.3.2"
SENTIMENT = {
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "posts": "tweets",
}
DATA = {
    "films": "sentences of film reviews, good or bad",
    "products": "sentences of reviews of products, good or bad",
    "editorials": "sentences of editorials, good or bad",
    "posts": "tweets, good or bad",
    "complaints": "the sample tweets, complaint or no complaint",
    "docstrings": "texts of SciPy's documentation, one of four parts of SciPy",
}
KEYS = ("base", "data", "rows", "method", "settings", "seed")
VALIDATION, TEST = 100, 300
Rows = dict[str, list[dict[str, str]]]


def write_results(results: list[dict[str, Any]]) -> None:
    """Write all results."""
    from peftly.utils import environment

    RESULTS.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n", "utf-8")


def read_results() -> list[dict[str, Any]]:
    """Return the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []


@cache
def archive() -> tarfile.TarFile:
    """Return the archive with the sentiment sets."""
    from peftly.cache import cache_home

    folder = cache_home() / "benchmarks"
    file = folder / f"{ARCHIVE}.tar.gz"
    if not file.exists():
        options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder))
        package = ARCHIVE.replace("-", "==")
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
    with tarfile.open(file) as outer:
        inner = outer.extractfile(f"{ARCHIVE}/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        return tarfile.open(fileobj=io.BytesIO(inner.read()))


def sentiment(name: str, rows: int, seed: int) -> Rows:
    """Return rows of a sentiment set, as many of one label as of the other."""
    member = archive().extractfile(f"hutto_ICWSM_2014/{SENTIMENT[name]}_GroundTruth.txt")
    assert member is not None
    texts: dict[str, list[str]] = {"bad": [], "good": []}
    for line in member.read().decode("latin-1").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > 0.5:
            texts["good" if float(rating) > 0 else "bad"].append(text)
    return _split(texts, {"train": rows, "validation": VALIDATION, "test": TEST}, seed)


def _split(texts: dict[str, list[str]], sizes: dict[str, int], seed: int) -> Rows:
    """Return splits with as many rows of each label. The seed decides which rows the splits have."""
    draw = random.Random(seed)
    for of_label in texts.values():
        draw.shuffle(of_label)
    start, splits = 0, {}
    for split, size in sizes.items():
        count = size // len(texts)
        rows = [{"text": text, "label": label} for label in texts for text in texts[label][start : start + count]]
        draw.shuffle(rows)
        splits[split] = rows
        start += count
    return splits


def rows_of(name: str, rows: int, seed: int) -> Rows:
    """Return the rows of a data set; the seed decides which rows each split has."""
    if name in SENTIMENT:
        return sentiment(name, rows, seed)
    with tempfile.TemporaryDirectory() as folder, as_file(files("peftly") / "sample_data" / "complaints") as tweets:
        docstrings.write_rows(Path(folder))
        source = tweets if name == "complaints" else Path(folder)
        lines = [line for split in ("train", "validation", "test") for line in _lines(source / f"{split}.jsonl")]
    texts: dict[str, list[str]] = {}
    for row in map(json.loads, lines):
        texts.setdefault(row["label"], []).append(row["text"])
    if name == "docstrings":  # there are 300
        return _split(texts, {"train": min(rows, 120), "validation": 60, "test": 120}, seed)
    return _split(texts, {"train": rows, "validation": VALIDATION, "test": TEST}, seed)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def measure(
    base: str, data: str, rows: int, method: str, settings: dict[str, Any], seed: int, head: str = "auto"
) -> dict[str, Any]:
    """Train one method, and return its scores after every epoch and those of the probe."""
    from peftly import METHODS
    from peftly.evaluation import evaluate, evaluate_probe
    from peftly.models import pooling_of
    from peftly.runs import RunConfig
    from peftly.runs.probing import choose_head, start_from
    from peftly.runs.run import attach_method, open_base_and_data
    from peftly.training import Callback, optimizer, train

    settings = dict(settings)
    factor = settings.pop("rate", 1)
    default = METHODS[method]
    METHODS[method] = replace(default, learning_rate=factor * default.learning_rate)
    optimizer.HEAD_RATE = settings.pop("head_rate", optimizer.HEAD_RATE)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for split, of_split in rows_of(data, rows, seed).items():
            paths[split] = str(Path(folder) / f"{split}.jsonl")
            Path(paths[split]).write_text("".join(json.dumps(row) + "\n" for row in of_split), encoding="utf-8")
        config = RunConfig.model_validate(
            {
                "base": base,
                "data": paths,
                "method": method,
                "head": head,
                "train": {"epochs": 5, **settings, "seed": seed},
                "out": str(Path(folder) / "run"),
            }
        )
        config, opened, loaded = open_base_and_data(config, None, None, lambda _: None)
        opened, _, probe = choose_head(opened, config, loaded, print, is_given=False)
        attach_method(opened, "default", config.adapters["default"], config, loaded, lambda _: None)
        start_from(opened, ["default"], loaded, probe)
        assert probe is not None
        assert loaded.validation is not None
        assert loaded.test is not None
        score = partial(evaluate_probe, opened.model, opened.tokenizer, probe, batch_size=32)
        of_probe = [score(split=split, row_format=loaded.row_format) for split in (loaded.validation, loaded.test)]
        start = evaluate(opened.model, opened.tokenizer, loaded.test, loaded.row_format).accuracy
        epochs: list[dict[str, Any]] = []

        class TestScores(Callback):
            """Scores on the test rows after every epoch."""

            def on_evaluate(self, record: Any) -> None:
                scores = evaluate(opened.model, opened.tokenizer, loaded.test, loaded.row_format)
                epochs.append(_epoch(record.epoch, record, scores))

        result = train(
            opened.model, loaded, config.train, tokenizer=opened.tokenizer, out=Path(folder), callbacks=[TestScores()]
        )
        final = evaluate(opened.model, opened.tokenizer, loaded.test, loaded.row_format)
    METHODS[method] = default
    return {
        "head": pooling_of(opened.model) or "transformers",
        "accuracy": final.accuracy,
        "probe_accuracy": of_probe[1].accuracy,
        "start_accuracy": start,
        "epochs": [_epoch(0, *of_probe), *epochs],
        "seconds": round(result.seconds, 1),
    }


def _epoch(epoch: float, validation: Any, test: Any) -> dict[str, Any]:
    """Return the scores after an epoch, rounded."""
    scores = {"epoch": epoch, "loss": validation.loss, "accuracy": validation.accuracy, "test": test.accuracy}
    return {name: round(value, 4) for name, value in scores.items()}


def gain(result: dict[str, Any]) -> float:
    """Return the points of accuracy on the test rows over the probe, by the rule of `metric_for_best_model: auto`."""
    trained = [epoch for epoch in result["epochs"] if epoch["epoch"]]
    _, best = max(enumerate(trained), key=lambda entry: (entry[1]["accuracy"], entry[0]))
    return 100 * (best["test"] - result["probe_accuracy"])


def table(results: list[dict[str, Any]]) -> str:
    """Return a table of the gains of each method with its default rate: by epochs and rows, and by data set."""
    names = [name for name in DATA if any(result["data"] == name for result in results)]
    lines = [f"| epochs, rows, method | runs | {' | '.join(names)} | mean |", "|---" * (len(names) + 3) + "|"]
    groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for result in results:
        if not set(result["settings"]) - {"epochs"}:
            key = (result["settings"].get("epochs", 5), result["rows"], result["method"])
            groups.setdefault(key, []).append(result)
    probes = [result for result in results if result["rows"] == 200]
    of_sets = [[100 * result["probe_accuracy"] for result in probes if result["data"] == name] for name in names]
    means = [statistics.mean(of_set) for of_set in of_sets]
    cells = [f"{value:.1f}" for value in (*means, statistics.mean(means))]
    lines.append(f"| 200 rows, accuracy of the linear probe | | {' | '.join(cells)} |")
    for (epochs, rows, method), group in sorted(groups.items(), key=lambda item: (item[0][1] != 200, item[0][:2])):
        of_sets = [[gain(result) for result in group if result["data"] == name] for name in names]
        cells = [f"{statistics.mean(of_set):+.1f}" if of_set else "" for of_set in of_sets]
        mean = statistics.mean(statistics.mean(of_set) for of_set in of_sets if of_set)
        lines.append(f"| {epochs}, {rows}, `{method}` | {len(group)} | {' | '.join(cells)} | {mean:+.1f} |")
    return "\n".join(lines)


def with_table(page: str, results: list[dict[str, Any]]) -> str:
    """Return the page with a new table."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + table(results) + "\n\n" + END + tail


def main() -> None:
    """Measure the missing results, and write the JSON and the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["minilm-l6"])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--rows", nargs="+", type=int, default=[200])
    parser.add_argument("--methods", nargs="+", default=["lora"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="training settings, such as epochs=10")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (text.split("=", 1) for text in options.set)}
    results = read_results()
    for seed, base, data, rows, method in itertools.product(
        options.seeds, options.bases, options.data, options.rows, options.methods
    ):
        key = dict(zip(KEYS, (base, data, rows, method, settings, seed), strict=True))
        if any(all(result[name] == value for name, value in key.items()) for result in results):
            continue
        scores = measure(**key)
        accuracies = [epoch["test"] for epoch in scores["epochs"]]
        print(
            f"== {data} {rows} {method} {settings} seed {seed}: {scores['accuracy']:.3f}, epochs {accuracies}",
            flush=True,
        )
        results.append({**key, **scores})
        write_results(results)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
