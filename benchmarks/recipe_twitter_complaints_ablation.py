"""Complaints on Twitter: what the length and the start of a soft prompt change."""

from pathlib import Path
from typing import Any

from charts import Line, line_chart
from recipe_twitter_complaints import epochs, percent
from recipes import machine, read, scores, train

BASE = "smollm2-135m"
PAGE = "twitter_complaints"
NAMES = {
    "length-1": "1 virtual token, from the text",
    "first": "8 virtual tokens, from the text",
    "length-20": "20 virtual tokens, from the text",
    "random": "8 virtual tokens, random",
}
"""Names of the prompts in the table, by the name of their jobs; `first` is the run of the recipe."""
WORDS = {
    "en": {
        "title": "Virtual tokens and their start",
        "epoch": "epoch",
        "perplexity": "held-out perplexity",
        "length-1": "1, text",
        "first": "8, text",
        "length-20": "20, text",
        "random": "8, random",
    },
    "zh": {
        "title": "虚拟标记的个数与初始化",
        "epoch": "轮",
        "perplexity": "留出集困惑度",
        "length-1": "1，文本",
        "first": "8，文本",
        "length-20": "20，文本",
        "random": "8，随机",
    },
}
"""Words of the picture."""
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "runs.length-1.parameters": (576, 576),
    "runs.length-20.parameters": (11_520, 11_520),
    "lowest.length-1": (5, None),
    "lowest.first": (None, 1.6),
    "lowest.length-20": (None, 1.6),
    "runs.random.epochs.0.held_out": (10, None),
    "lowest.random": (None, 1.8),
}


def measure(folder: Path) -> dict[str, Any]:
    """Train three prompts beside that of the recipe, which is measured before."""
    out = train("examples/twitter_complaints_ablation.yaml", folder / "runs")
    runs = {"first": read("twitter_complaints")["result"]["first"]}
    runs |= {name: scores(out / name) | {"epochs": epochs(out / name)} for name in NAMES if name != "first"}
    return {"runs": runs, "lowest": {name: min(e["held_out"] for e in run["epochs"]) for name, run in runs.items()}}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page."""
    result = content["result"]
    lines = ["| prompt | parameters | adapter file | lowest held-out perplexity | test accuracy | macro-F1 |"]
    lines.append("|---|---|---|---|---|---|")
    for name, title in NAMES.items():
        run = result["runs"][name]
        cells = [title, f"{run['parameters']:,}", f"{run['bytes'] / 1e3:.1f} kB", f"{result['lowest'][name]:.3f}"]
        lines.append(f"| {' | '.join([*cells, percent(run['accuracy']), percent(run['macro_f1'])])} |")
    return {"ablation": "\n".join([*lines, "", machine(content)])}


def pictures(content: dict[str, Any]) -> dict[str, str]:
    """Return the picture of the page in both languages."""
    files = {}
    for language, words in WORDS.items():
        runs = content["result"]["runs"]
        lines = [Line(words[name], [(e["epoch"], e["held_out"]) for e in runs[name]["epochs"]]) for name in NAMES]
        ending = ".svg" if language == "en" else f".{language}.svg"
        picture = line_chart(words["title"], words["epoch"], words["perplexity"], lines)
        files[f"twitter_complaints_ablation{ending}"] = picture
    return files
