"""Measure which rule keeps the best adapter of a run: loss, accuracy, or both, on few or many validation examples.

    python benchmarks/best_adapter.py --tables minilm-l6/tweets --methods lora --seeds 0 1 2

Each run is trained once, as in benchmarks/methods.py or in the quickstart, and every adapter that an evaluation could
keep is scored on the validation and on the test examples. All rules are then applied to these curves, with all
validation examples and with random parts of them. The curves are in benchmarks/results/best_adapter.json; a run that
is there is not trained again, so that the measurement can be made in parts. `--report` prints the figures only.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    """Train one run and score every adapter on the way.

    Args:
        table: entry of `TABLES`.
        method: name of the method.
        seed: seed of the run.
        evaluations: evaluations in an epoch; None: 1 in a run of many epochs, 3 in one of two.
    """
    from peftly import METHODS as REGISTRY
    from peftly import TrainConfig, attach, load_base, train
    from peftly.data import DataConfig, load_data
    from peftly.runs.quickstart import METHODS as QUICKSTART

    base, _, data = table.partition("/")
    base, data = ("smollm2-135m", "tweets") if table == "quickstart" else (base, data)
    task, settings = BASES[base]["task"], dict(BASES[base]["train"])
    config = REGISTRY[method].config()
    if table == "quickstart" and method in QUICKSTART:
        _, config, settings = QUICKSTART[method]
    with data_files(data) as paths:
        lines = Path(paths["train"]).read_text(encoding="utf-8").splitlines()
        labels = tuple(sorted({json.loads(line)["label"] for line in lines}))
        model, tokenizer = load_base(base, task=task, labels=labels if task != "causal_lm" else (), seed=seed)
        loaded = load_data(DataConfig(**paths), tokenizer, task=task)
    attach(
        model, config, tokenizer=tokenizer, answers=loaded.row_format.answers, seed=seed, examples=loaded.train.encoded
    )
    per_epoch = math.ceil(len(loaded.train.encoded) / settings["batch_size"])
    evaluations = evaluations or (1 if settings["epochs"] > 2 else 3)
    watch = _Watch(model, tokenizer, loaded, max(1, per_epoch // evaluations))
    settings = {**settings, "eval_steps": None, "seed": seed}
    rest = replace(loaded, validation=None, test=None)
    train(model, rest, TrainConfig(**settings), tokenizer=tokenizer, callbacks=[watch.callback()])
    return watch.curve


class _Watch:
    """Scores the adapter on the validation and the test examples after every `every` steps, and after the last one."""

    def __init__(self, model: Any, tokenizer: Any, data: Any, every: int) -> None:
        self.model, self.tokenizer, self.data, self.every = model, tokenizer, data, every
        self.curve: Curve = []

    def callback(self) -> Any:
        from peftly.training import Callback

        watch = self

        class Scores(Callback):
            def on_step(self, record: Any) -> None:
                if record.step % watch.every == 0 or record.step == record.steps:
                    watch.score(record.step)

        return Scores()

    def score(self, step: int) -> None:
        from peftly import evaluate

        found = {}
        for split in ("validation", "test"):
            examples = getattr(self.data, split)
            found[split] = evaluate(self.model, self.tokenizer, examples, self.data.row_format)
        validation, test = found["validation"], found["test"]
        self.curve.append(
            {
                "step": step,
                "correct": "".join(str(int(one.label == one.predicted)) for one in validation.predictions),
                "losses": [round(-one.log_probabilities[one.label], 4) for one in validation.predictions],
                "test": {"accuracy": test.accuracy, "macro_f1": test.macro_f1, "loss": test.loss},
            }
        )


def points(curve: Curve, chosen: Sequence[int] | None = None) -> list[Point]:
    """Return the validation scores of a curve, over all examples or those with the given indices."""
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
    for table in (*TABLES, "all"):
        group = [run for run in runs if table in (run["table"], "all")]
        for size in (*SIZES, None) if group else ():
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
    print(report(runs))


if __name__ == "__main__":
    main()
