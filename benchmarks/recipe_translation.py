"""Translation: the example on a decoder that ships, and the size of the tutorial's job on mt0-large."""

from pathlib import Path
from typing import Any

import recipes

BASE = "smollm2-135m"
BOUNDS = {
    "before.exact": (None, 0.05),
    "after.exact": (0.5, None),
    "after.loss": (None, 0.5),
    "mt0.trained_parameters": (2359296, 2359296),
}
HEADLINES = {"loss, with LoRA": ("after.loss", ".2f"), "exact translations, with LoRA": ("after.exact", ".0%")}
MT0_LARGE = {"vocab_size": 250112, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
MT0_LARGE |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Run the example, and estimate the memory of mt0-large."""
    size = mt0(folder / "mt0")
    found: dict[str, Any] = recipes.example("translation").main(folder=str(folder / "run"), seed=seed)
    return found | {"mt0": size}


def mt0(folder: Path) -> dict[str, Any]:
    """Return the estimate for mt0-large in float32, with the layers that PEFT takes by default."""
    from transformers import MT5Config

    import peftly
    from peftly.runs import estimate_memory

    MT5Config(**MT0_LARGE).save_pretrained(folder)
    method = peftly.LoRA(rank=8, alpha=32, target_modules=("q", "v"))
    estimate = estimate_memory(str(folder), method, peftly.TrainConfig(batch_size=8), data=64, dtype="float32")
    names = ("base_bytes", "training_bytes", "trained_parameters", "adapter_bytes")
    return {name: getattr(estimate, name) for name in names}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the scores of the example, and the size of the job on mt0-large."""
    result = content["result"]
    lines = ["| model | loss | exact translations | first three translations |", "|---|---|---|---|"]
    for key, name in {"before": "untouched base", "after": "with LoRA"}.items():
        found = result[key]
        texts = "; ".join(" ".join(answer.split())[:40].replace("|", "") for answer in found["answers"])
        lines.append(f"| {name} | {found['loss']:.2f} | {found['exact']:.0%} | {texts} |")
    lines += ["", f"{result['rows']} sentences that are not in the training.", "", recipes.machine(content)]
    size = result["mt0"]
    values = [
        f"{size['trained_parameters']:,}",
        f"{size['adapter_bytes'] / 1e6:.1f} MB",
        f"{size['base_bytes'] / 1e9:.1f} GB",
    ]
    values.append(f"{size['training_bytes'] / 1e9:.1f} GB")
    costs = [
        "| mt0-large, estimated | trained parameters | adapter | base | peak of the steps |",
        "|---|---|---|---|---|",
    ]
    costs.append(f"| rank 8 on `q` and `v`, batches of 8 with 64 tokens | {' | '.join(values)} |")
    return {"translation": "\n".join(lines), "mt0": "\n".join(costs)}
