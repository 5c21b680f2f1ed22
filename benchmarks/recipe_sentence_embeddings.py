"""Sentence embeddings: minilm-l6 before and after LoRA on requests of customers, and opened by other tools."""

from pathlib import Path
from typing import Any

import recipes

BASE = "minilm-l6"
BOUNDS = {
    "before: accuracy": (0.5, 0.7),
    "after: accuracy": (0.75, None),
    "opened again: accuracy": (0.75, None),
    "bytes": (None, 2e6),
}
HEADLINES = {"accuracy, with LoRA": ("after: accuracy", ".1%")}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Run the example."""
    found: dict[str, Any] = recipes.example("sentence_embeddings").main(str(folder), seed=seed)
    return found | {"bytes": (folder / "model" / "adapter_model.safetensors").stat().st_size}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the scores."""
    result = content["result"]
    lines = ["| model | accuracy | similarity to the own topic |", "|---|---|---|"]
    names = {"before": "`minilm-l6`", "after": "with LoRA", "opened again": "opened again by sentence-transformers"}
    for name, text in names.items():
        lines.append(f"| {text} | {result[f'{name}: accuracy']:.1%} | {result[f'{name}: similarity']:.2f} |")
    lines += [
        "",
        f"48 requests that are not in the training, 16 topics. The adapter takes {result['bytes'] / 1e3:,.0f} kB.",
        "",
        f"Measured in float32 with 1 thread of a CPU ({content['environment']['cpu']}).",
    ]
    return {"embeddings": "\n".join(lines)}
