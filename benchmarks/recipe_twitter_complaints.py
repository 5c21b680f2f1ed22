"""Complaints on Twitter with a soft prompt: perplexity per epoch, predictions, and five prompts that vote."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

from charts import Line, bar_chart, line_chart
from recipes import example, machine, peftly, scores, train

BASE = "smollm2-135m"
CONFIG = "examples/twitter_complaints.yaml"
WORDS = {
    "en": {
        "epochs": "Perplexity of the answers after each epoch",
        "epoch": "epoch",
        "perplexity": "perplexity",
        "train": "50 training tweets",
        "held_out": "40 held-out tweets",
        "ensemble": "Five prompts vote",
        "accuracy": "test accuracy in %",
        "member": "seed {}",
        "vote": "vote",
        "mean": "mean of the five",
    },
    "zh": {
        "epochs": "每轮之后答案的困惑度",
        "epoch": "轮",
        "perplexity": "困惑度",
        "train": "50 条训练推文",
        "held_out": "40 条留出推文",
        "ensemble": "五个提示投票",
        "accuracy": "测试集准确率（%）",
        "member": "种子 {}",
        "vote": "投票",
        "mean": "五个的均值",
    },
}
"""Words of the pictures."""
MEMBERS = 5
TEST = "examples/data/twitter_complaints_test.jsonl"
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "untouched base.accuracy": (None, 0.6),
    "first.parameters": (4608, 4608),
    "first.bytes": (None, 30_000),
    "first.epochs.0.held_out": (3, None),
    "first.epochs.5.held_out": (None, 1.6),
    "first.macro_f1": (0.5, None),
    "mean": (0.54, None),
    "ensemble.accuracy": (0.57, None),
    "gain": (0, None),
    "predictions.rows": (100, 100),
}


def measure(folder: Path) -> dict[str, Any]:
    """Train the ensemble, whose first member is the run of the page, and predict the test tweets with this member."""
    votes = train(CONFIG, folder / "votes", "--ensemble", MEMBERS)
    first = votes / "member_1"
    file = folder / "predictions.csv"
    if not file.is_file():
        peftly("predict", first, "--data", TEST, "--out", file, "--form", "raft")
    with file.open(encoding="utf-8", newline="") as lines:
        predictions = list(csv.DictReader(lines))
    rows = {row["name"]: row for row in json.loads((votes / "results.json").read_text("utf-8"))["rows"]}
    kept = ("accuracy", "macro_f1", "loss", "parameters", "bytes")
    rows = {name: {key: row.get(key) for key in kept} for name, row in rows.items()}
    members = [rows[f"member_{number + 1}"] for number in range(MEMBERS)]
    accuracies = [member["accuracy"] for member in members]
    return {
        "first": scores(first) | {"epochs": epochs(first)},
        **{
            name: next(row for full_name, row in rows.items() if full_name.endswith(name))
            for name in ("untouched base", "linear probe")
        },
        "members": members,
        "ensemble": rows["ensemble"],
        "mean": statistics.mean(accuracies),
        "best": max(accuracies),
        "gain": rows["ensemble"]["accuracy"] - statistics.mean(accuracies),
        "predictions": {"columns": list(predictions[0]), "rows": len(predictions), "first": predictions[:3]},
    }


def epochs(run: Path) -> list[dict[str, Any]]:
    """Return the perplexity of training and held-out tweets after each epoch of a run."""
    return example("twitter_complaints").perplexities(run)


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page: epochs, and the vote."""
    result = content["result"]
    first, base = result["first"], result["untouched base"]
    lines = ["| epoch | perplexity, training tweets | perplexity, held-out tweets |", "|---|---|---|"]
    lines += [f"| {e['epoch']:.0f} | {e['train']:.3f} | {e['held_out']:.3f} |" for e in first["epochs"]]
    line = (
        f"Test accuracy {percent(first['accuracy'])}, macro-F1 {percent(first['macro_f1'])}; "
        f"untouched base: accuracy {percent(base['accuracy'])}, macro-F1 {percent(base['macro_f1'])}."
    )
    found = {"epochs": "\n".join([*lines, "", line, "", machine(content)])}
    lines = ["| | test accuracy | macro-F1 |", "|---|---|---|"]
    named = {f"seed {seed}": member for seed, member in enumerate(result["members"])}
    for name, row in {**named, "vote of the five": result["ensemble"]}.items():
        lines.append(f"| {name} | {percent(row['accuracy'])} | {percent(row['macro_f1'])} |")
    lines.append(f"| mean of the five | {percent(result['mean'])} | |")
    lines.append(f"| best of the five | {percent(result['best'])} | |")
    found["ensemble"] = "\n".join(lines)
    return found


def pictures(content: dict[str, Any]) -> dict[str, str]:
    """Return the pictures of the page in both languages."""
    files = {}
    for language, words in WORDS.items():
        ending = ".svg" if language == "en" else f".{language}.svg"
        for name, draw in {"epochs": _epochs, "ensemble": _ensemble}.items():
            files[f"twitter_complaints_{name}{ending}"] = draw(content["result"], words)
    return files


def _epochs(result: dict[str, Any], words: dict[str, str]) -> str:
    curve = result["first"]["epochs"]
    lines = [Line(words[key], [(epoch["epoch"], epoch[key]) for epoch in curve]) for key in ("train", "held_out")]
    return line_chart(words["epochs"], words["epoch"], words["perplexity"], lines)


def _ensemble(result: dict[str, Any], words: dict[str, str]) -> str:
    bars = [
        (words["member"].format(seed), round(100 * member["accuracy"], 1))
        for seed, member in enumerate(result["members"])
    ]
    bars.append((words["vote"], round(100 * result["ensemble"]["accuracy"], 1)))
    return bar_chart(
        words["ensemble"], words["accuracy"], bars, reference=(words["mean"], round(100 * result["mean"], 1))
    )


def percent(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.1f}%"
