"""Film reviews: four methods, and the merged LoRA in a pipeline of transformers."""

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
REVIEWS = {"A wonderful film, I cried and laughed.": "positive", "Dull, much too long, and badly acted.": "negative"}
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "probe": (0.65, 0.8),
    "lora.accuracy": (0.7, None),
    "adapter.accuracy": (0.7, None),
    "p_tuning_v2.accuracy": (0.68, None),
    "lora_minus_full": (-0.1, None),
    "lora.bytes": (1e6, 2e6),
    "pipeline_right": (2, 2),
    "pipeline_difference": (None, 1e-3),
}


HEADLINES = {"test accuracy, linear probe": ("probe", ".1%")} | {
    f"test accuracy, {title}": (f"{name}.accuracy", ".1%") for name, title in METHODS.items()
}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train all methods, and open the merged LoRA."""
    out = train("examples/film_reviews.yaml", folder / "run", seed=seed)
    runs = {name: scores(out / name) for name in METHODS}
    return {
        **runs,
        "probe": runs["lora"]["baselines"]["linear probe"]["accuracy"],
        "lora_minus_full": runs["lora"]["accuracy"] - runs["full"]["accuracy"],
        **_in_pipeline(folder),
    }


def _in_pipeline(folder: Path) -> dict[str, Any]:
    """Return the number of reviews that transformers alone gets right, and its distance from peftly's scores."""
    from transformers import pipeline

    from peftly import classify, load

    run, merged = folder / "run" / "lora", folder / "merged"
    peftly("merge", run, "--out", merged)
    texts = list(REVIEWS)
    found = pipeline("text-classification", model=str(merged), dtype="float32")(texts)
    model, tokenizer = load(run, dtype="float32")
    ours = [max(scores.values()) for scores in classify(model, tokenizer, texts)]
    differences = [abs(a["score"] - b) for a, b in zip(found, ours, strict=True)]
    right = sum(verdict["label"] == REVIEWS[text] for text, verdict in zip(texts, found, strict=True))
    return {"pipeline": found, "pipeline_right": right, "pipeline_difference": max(differences)}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page: the accuracy and the size of each method."""
    result = content["result"]
    lines = ["| method | test accuracy | parameters | adapter file |", "|---|---|---|---|"]
    lines.append(f"| linear probe | {result['probe']:.1%} | 0 | |")
    for name, title in METHODS.items():
        run = result[name]
        lines.append(f"| {title} | {run['accuracy']:.1%} | {run['parameters']:,} | {run['bytes'] / 1e6:.2f} MB |")
    note = f"Seed 0; {result['lora']['examples']} test reviews."
    return {"film_reviews": "\n".join([*lines, "", note, "", machine(content)])}
