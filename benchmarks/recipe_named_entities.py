"""Named entities: F1 of entities with LoRA and P-tuning v2, and the tags that `predict` writes."""

import json
from pathlib import Path
from typing import Any

from recipes import ROOT, machine, peftly, scores, train

BASE = "minilm-l6"
METHODS = {"lora": "LoRA, all linear layers", "p_tuning_v2": "P-tuning v2"}
TEST = "examples/data/named_entities_test.jsonl"
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "lora.entity_f1": (0.55, None),
    "lora.baselines.linear probe.entity_f1": (None, 0.45),
    "p_tuning_v2.entity_f1": (0.45, None),
    "predicted.rows": (50, 50),
    "predicted.words": (0.85, None),
}
HEADLINES = {
    "F1 of entities, linear probe": ("lora.baselines.linear probe.entity_f1", ".1%"),
    **{f"F1 of entities, {title}": (f"{name}.entity_f1", ".1%") for name, title in METHODS.items()},
}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train both methods, and write the tags of the test sentences with the first one."""
    out = train("examples/named_entities.yaml", folder / "run", seed=seed)
    result: dict[str, Any] = {name: scores(out / name) for name in METHODS}
    file = folder / "tags.jsonl"
    peftly("predict", out / "lora", "--data", TEST, "--out", file, "--overwrite")
    predicted = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [pair for row in predicted for pair in zip(row["tags"], row["prediction"], strict=True)]
    right = sum(tag == prediction for tag, prediction in pairs) / len(pairs)
    result["predicted"] = {"rows": len(predicted), "words": right, "first": predicted[0]}
    result["entities"] = {
        split: sum(tag.startswith("B-") for row in rows(name) for tag in row["tags"])
        for split, name in (("train", "named_entities"), ("test", "named_entities_test"))
    }
    return result


def rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of examples/data."""
    lines = (ROOT / "examples" / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page."""
    result = content["result"]
    lines = ["| method | F1 of entities | parameters | adapter file |", "|---|---|---|---|"]
    for name, title in METHODS.items():
        run = result[name]
        f1 = f"{100 * run['entity_f1']:.1f}%"
        lines.append(f"| {title} | {f1} | {run['parameters']:,} | {run['bytes'] / 1e6:.2f} MB |")
    probe = result["lora"]["baselines"].get("linear probe", {})
    if probe.get("entity_f1") is not None:
        lines.append(f"| linear probe | {100 * probe['entity_f1']:.1f}% | 0 | |")
    note = f"{result['predicted']['rows']} test sentences with {result['entities']['test']} entities."
    return {"named_entities": "\n".join([*lines, "", note, "", machine(content)])}
