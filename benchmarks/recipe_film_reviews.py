"""Film reviews: four methods, and the merged LoRA in a pipeline of transformers."""

import statistics
from pathlib import Path
from typing import Any

from recipes import machine, peftly, scores, train

BASE = "minilm-l6"
METHODS = {
    "lora": "LoRA",
    "adapter": "bottleneck adapters",
    "p_tuning_v2": "P-tuning v2",
    "full": "full fine-tuning",
}
SEEDS = (0,)
REVIEWS = {"A wonderful film, I cried and laughed.": "positive", "Dull, much too long, and badly acted.": "negative"}
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "probe": (0.65, 0.8),
    "mean.lora": (0.74, None),
    "mean.adapter": (0.74, None),
    "mean.p_tuning_v2": (0.72, None),
    "lora_minus_full": (-0.05, None),
    "runs.0.lora.bytes": (1e6, 2e6),
    "pipeline_right": (2, 2),
    "pipeline_difference": (None, 1e-3),
}


def measure(folder: Path) -> dict[str, Any]:
    """Train all methods with every seed, and open the merged LoRA of the first one."""
    runs = []
    for seed in SEEDS:
        out = train("examples/film_reviews.yaml", folder / f"seed-{seed}", "--seed", seed)
        runs.append({name: scores(out / name) for name in METHODS})
    mean = {name: statistics.mean(run[name]["accuracy"] for run in runs) for name in METHODS}
    probe = statistics.mean(run["lora"]["baselines"]["linear probe"]["accuracy"] for run in runs)
    return {
        "seeds": SEEDS,
        "runs": runs,
        "mean": mean,
        "probe": probe,
        "lora_minus_full": mean["lora"] - mean["full"],
        **_in_pipeline(folder),
    }


def _in_pipeline(folder: Path) -> dict[str, Any]:
    """Return the number of reviews that transformers alone gets right, and its distance from peftly's scores."""
    from transformers import pipeline

    from peftly import classify, load

    run, merged = folder / "seed-0" / "lora", folder / "merged"
    peftly("merge", run, "--out", merged)
    texts = list(REVIEWS)
    found = pipeline("text-classification", model=str(merged), dtype="float32")(texts)
    model, tokenizer = load(run, dtype="float32")
    ours = [max(scores.values()) for scores in classify(model, tokenizer, texts)]
    differences = [abs(a["score"] - b) for a, b in zip(found, ours, strict=True)]
    right = sum(verdict["label"] == REVIEWS[text] for text, verdict in zip(texts, found, strict=True))
    return {"pipeline": found, "pipeline_right": right, "pipeline_difference": max(differences)}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page: mean accuracy and range of each method."""
    runs = content["result"]["runs"]
    lines = ["| method | test accuracy | parameters | adapter file |", "|---|---|---|---|"]
    probes = [run["lora"]["baselines"]["linear probe"]["accuracy"] for run in runs]
    lines.append(f"| linear probe | {spread(probes)} | 0 | |")
    for name, title in METHODS.items():
        of = [run[name] for run in runs]
        size = f"{of[0]['bytes'] / 1e6:.2f} MB"
        lines.append(f"| {title} | {spread([each['accuracy'] for each in of])} | {of[0]['parameters']:,} | {size} |")
    seeds = ", ".join(map(str, content["result"]["seeds"]))
    note = f"Seed{'s' if len(runs) > 1 else ''} {seeds}; {runs[0]['lora']['examples']} test reviews."
    return {"film_reviews": "\n".join([*lines, "", note, "", machine(content)])}


def spread(values: list[float]) -> str:
    """Return the mean of some fractions in percent, and their range in brackets."""
    low, mean, high = (f"{100 * value:.1f}%" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
