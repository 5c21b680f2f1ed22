"""A reward model: the fraction of held-out pairs whose chosen answer gets the larger reward."""

import json
from pathlib import Path
from typing import Any

from recipes import example, machine

BASE = "minilm-l6"
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "held_out": (0.85, None),
    "train": (0.95, None),
    "before": (None, 0.75),
    "longer": (0.45, 0.55),
}
HEADLINES = {"held-out pairs that are right, LoRA": ("held_out", ".1%")}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Run the script, and read the size of its adapter."""
    found = example("reward_model").main(folder=str(folder), seed=seed)
    adapter = folder / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in adapter.rglob("*") if file.is_file())
    return {**found, "bytes": size, "task_type": config.get("task_type")}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page."""
    result = content["result"]
    names = {
        "longer": "the longer answer",
        "before": "new head on the untouched base",
        "held_out": "LoRA",
    }
    lines = ["| judge | held-out pairs that it gets right |", "|---|---|"]
    lines += [f"| {title} | {100 * result[name]:.1f}% |" for name, title in names.items()]
    note = f"The folder of the adapter, with its tokenizer, takes {result['bytes'] / 1e6:.2f} MB."
    return {"reward_model": "\n".join([*lines, "", note, "", machine(content)])}
