"""Digits: LoRA on a plain network, with a loop of its own and with Lightning."""

from pathlib import Path
from typing import Any

import recipes

BASE = "a network of three linear layers"
BOUNDS = {
    "plain.0-4, base": (0.97, None),
    "plain.5-9, base": (None, 0.05),
    "plain.5-9, with LoRA": (0.88, None),
    "plain.share of parameters trained": (None, 0.034),
    "lightning.5-9, best weights": (0.9, None),
    "lightning.0-4, LoRA switched off": (0.97, None),
    "lightning.epochs": (10, 199),
}


def measure(folder: Path) -> dict[str, Any]:
    """Run both examples."""
    lightning = recipes.example("digits_lightning").main(str(folder))
    return {"plain": recipes.example("digits_lora").main(), "lightning": lightning}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the accuracies of both examples."""
    plain, lightning = content["result"]["plain"], content["result"]["lightning"]
    lines = ["| test images | plain loop | Lightning |", "|---|---|---|"]
    rows = {
        "0 to 4, base": ("0-4, base", "0-4, base"),
        "5 to 9, base": ("5-9, base", "5-9, base"),
        "5 to 9, with LoRA": ("5-9, with LoRA", "5-9, best weights"),
        "5 to 9, with LoRA, last weights": (None, "5-9, last weights"),
        "5 to 9, merged": ("5-9, merged", None),
        "0 to 4, LoRA switched off": ("0-4, LoRA switched off", "0-4, LoRA switched off"),
    }
    for text, (one, other) in rows.items():
        cells = ["" if name is None else f"{found[name]:.1%}" for found, name in ((plain, one), (lightning, other))]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    share = plain["share of parameters trained"]
    lines += [
        "",
        f"Trained: {share:.1%} of the parameters.",
        "",
        f"Lightning: learning rate {lightning['learning rate']:.1e} by the finder; best epoch "
        f"{lightning['best epoch']:.0f} of {lightning['epochs']:.0f}. Its checkpoint takes "
        f"{lightning['bytes of the checkpoint'] / 1e3:,.0f} kB, the adapter "
        f"{lightning['bytes of the adapter'] / 1e3:,.0f} kB.",
        "",
        f"Measured in float32 with 1 thread of a CPU ({content['environment']['cpu']}).",
    ]
    return {"digits": "\n".join(lines)}
