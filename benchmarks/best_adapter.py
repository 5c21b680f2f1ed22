"""Measure which rule keeps the best adapter of a run: loss, accuracy, or both, on few or many validation examples.

    python benchmarks/best_adapter.py --tables minilm-l6/tweets --methods lora --seeds 0 1 2

Each run is trained once, as in benchmarks/methods.py or in the quickstart, and every adapter that an evaluation could
keep is scored on the validation and on the test examples. All rules are then applied to these curves, with all
validation examples and with random parts of them. The curves are in benchmarks/results/best_adapter.json; a run that
is there is not trained again, so that the measurement can be made in parts. `--report` prints the figures only. They
include the curves of benchmarks/results/encoders.json, which have the scores over all validation examples only.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import encoders
from methods import BASES, DATA, data_files

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "best_adapter.json"
TABLES = (*(f"{base}/{data}" for base in BASES for data in DATA), "quickstart")
METHODS = ("lora", "prompt_tuning", "ia3", "adapter")
SIZES = (5, 10, 20, 40)
"""Numbers of validation examples, besides all of them."""
PARTS = 200
"""Random parts of the validation examples for each size."""

Curve = list[dict[str, Any]]
"""Evaluations of a run, in order: `step`, `correct` and `losses` of the validation examples, and `test` scores."""


@dataclass(frozen=True)
class Point:
    """Scores of one adapter of a run on validation examples.

    Attributes:
        loss: mean loss.
        accuracy: fraction of correct labels.
        rows: number of examples.
    """

    loss: float
    accuracy: float
    rows: int

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(max(self.accuracy * (1 - self.accuracy), 0.25 / self.rows) / self.rows)


def by_loss(points: Sequence[Point]) -> int:
    """Return the index of the lowest loss."""
    return min(range(len(points)), key=lambda index: points[index].loss)


def by_accuracy(points: Sequence[Point]) -> int:
    """Return the index of the highest accuracy; the loss decides between equal ones."""
    return min(range(len(points)), key=lambda index: (-points[index].accuracy, points[index].loss))


def by_accuracy_late(points: Sequence[Point]) -> int:
    """Return the index of the highest accuracy, the last of equal ones."""
    return max(range(len(points)), key=lambda index: (points[index].accuracy, index))


def within_one_error(points: Sequence[Point]) -> int:
    """Return the index of the lowest loss among the accuracies within one standard error of the highest."""
    best = points[by_accuracy(points)]
    near = [index for index, point in enumerate(points) if point.accuracy >= best.accuracy - best.error]
    return min(near, key=lambda index: points[index].loss)


def by_sum(points: Sequence[Point]) -> int:
    """Return the index of the lowest sum of loss and error rate."""
    return min(range(len(points)), key=lambda index: points[index].loss - points[index].accuracy)


def last(points: Sequence[Point]) -> int:
    """Return the index of the last evaluation."""
    return len(points) - 1


RULES: dict[str, Callable[[Sequence[Point]], int]] = {
    "loss": by_loss,
    "accuracy, then loss": by_accuracy,
    "accuracy, then the later": by_accuracy_late,
    "lowest loss within one standard error of the best accuracy": within_one_error,
    "loss + error rate": by_sum,
    "last": last,
}


def train_once(table: str, method: str, seed: int, evaluations: int | None) -> Curve:
    """Train one run, save the adapter at every evaluation, and score each of them.

    Args:
        table: entry of `TABLES`.
        method: name of the method.
        seed: seed of the run.
        evaluations: evaluations in an epoch; None: 1 in a run of many epochs, 3 in one of two.
    """
    from peftly.runs.config import RunConfig
    from peftly.runs.quickstart import TASKS
    from peftly.runs.run import run

    base, _, data = table.partition("/")
    base, data = ("smollm2-135m", "tweets") if table == "quickstart" else (base, data)
    settings, chosen = dict(BASES[base]["train"]), method
    if table == "quickstart" and method in ("prompt_tuning", "lora"):
        chosen, settings = getattr(TASKS["tweets"], method)
    with data_files(data) as paths, tempfile.TemporaryDirectory() as folder:
        rows = len(Path(paths["train"]).read_text(encoding="utf-8").splitlines())
        per_epoch = math.ceil(rows / settings["batch_size"])
        every = max(1, per_epoch // (evaluations or (1 if settings["epochs"] > 2 else 3)))
        steps = {"eval_steps": settings["epochs"] * per_epoch, "save_steps": every}
        out = Path(folder) / "run"
        config = RunConfig.model_validate(
            {
                "base": base,
                "task": BASES[base]["task"],
                "data": paths,
                "method": chosen,
                "train": {**settings, **steps, "seed": seed},
                "out": str(out),
            }
        )
        run(config, log=print)
        saved = {int(path.name.removeprefix("step-")): path for path in out.glob("step-*")}
        return [{"step": step, **scores(saved[step], paths, BASES[base]["task"])} for step in sorted(saved)]


def scores(adapter: Path, paths: dict[str, str], task: Any) -> dict[str, Any]:
    """Return the scores of a saved adapter on the validation and on the test examples."""
    from peftly import evaluate, load
    from peftly.data import DataConfig, load_data

    model, tokenizer = load(adapter)
    data = load_data(DataConfig.model_validate(paths), tokenizer, task=task)
    assert data.validation is not None
    assert data.test is not None
    validation = evaluate(model, tokenizer, data.validation, data.row_format).predictions
    test = evaluate(model, tokenizer, data.test, data.row_format)
    return {
        "correct": "".join(str(int(one.label == one.predicted)) for one in validation),
        "losses": [round(-one.log_probabilities[one.label], 4) for one in validation],
        "test": {"accuracy": test.accuracy, "macro_f1": test.macro_f1, "loss": test.loss},
    }


def curves_of_encoders() -> list[dict[str, Any]]:
    """Return the curves of benchmarks/encoders.py with default settings, without the evaluation before the training."""
    runs = []
    for result in encoders.read_results():
        curve = [{**epoch, "test": {"accuracy": epoch["test"]}} for epoch in result["epochs"] if epoch["epoch"]]
        if not result["settings"]:
            runs.append({"table": f"encoders, {result['data']}", "curve": curve})
    return runs


def points(curve: Curve, chosen: Sequence[int] | None = None) -> list[Point]:
    """Return the validation scores of a curve, over all examples or those with the given indices."""
    if "losses" not in curve[0]:
        return [Point(entry["loss"], entry["accuracy"], encoders.VALIDATION) for entry in curve]
    rows = range(len(curve[0]["losses"])) if chosen is None else chosen
    return [
        Point(
            statistics.fmean(entry["losses"][row] for row in rows),
            statistics.fmean(int(entry["correct"][row]) for row in rows),
            len(rows),
        )
        for entry in curve
    ]


def kept(curve: Curve, rule: str, size: int | None) -> float:
    """Return the mean test accuracy of the adapter that a rule keeps, with `size` validation examples; None: all."""
    if size is None:
        return float(curve[RULES[rule](points(curve))]["test"]["accuracy"])
    rows, draw = range(len(curve[0]["losses"])), random.Random(0)
    parts = [draw.sample(rows, min(size, len(rows))) for _ in range(PARTS)]
    return statistics.fmean(float(curve[RULES[rule](points(curve, part))]["test"]["accuracy"]) for part in parts)


def report(runs: list[dict[str, Any]]) -> str:
    """Return a table of the test accuracy that each rule keeps, by numbers of validation examples."""
    lines = [
        "| runs | validation examples | " + " | ".join(RULES) + " | best adapter |",
        "|---" * (len(RULES) + 3) + "|",
    ]
    for table in (*dict.fromkeys(run["table"] for run in runs), "all"):
        group = [run for run in runs if table in (run["table"], "all")]
        has_rows = all("losses" in run["curve"][0] for run in group)
        for size in (*SIZES, None) if has_rows else (None,):
            cells = [statistics.fmean(kept(run["curve"], rule, size) for run in group) for rule in RULES]
            best = statistics.fmean(max(entry["test"]["accuracy"] for entry in run["curve"]) for run in group)
            shown = " | ".join(f"{100 * value:.2f}" for value in (*cells, best))
            lines.append(f"| {table} ({len(group)}) | {size or 'all'} | {shown} |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    """Return the stored runs."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []


def write(runs: list[dict[str, Any]]) -> None:
    """Write all runs, one a line, and the machine."""
    from peftly.utils.environment import automatic_dtype, environment

    head = json.dumps({"environment": environment(), "dtype": automatic_dtype()})
    body = ",\n".join(json.dumps(run) for run in runs)
    RESULTS.write_text(f'{head[:-1]}, "runs": [\n{body}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Train the runs that are missing, and print the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, help="evaluations in an epoch")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    runs = read()
    wanted = [(table, method, seed) for table in options.tables for method in options.methods for seed in options.seeds]
    for table, method, seed in [] if options.report else wanted:
        key = {"table": table, "method": method, "seed": seed}
        if any(all(run[name] == value for name, value in key.items()) for run in runs):
            continue
        print(f"== {key}", flush=True)
        runs.append({**key, "curve": train_once(table, method, seed, options.evaluations)})
        write(runs)
    print(report(sorted(runs, key=lambda run: TABLES.index(run["table"])) + curves_of_encoders()))


if __name__ == "__main__":
    main()
