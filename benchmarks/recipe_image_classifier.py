"""A vision transformer: LoRA on queries and values, the classifier trained whole."""

from pathlib import Path
from typing import Any

import recipes

BASE = "a vision transformer of three layers"
BOUNDS = {
    "0-4, base": (0.9, None),
    "5-9, base": (None, 0.05),
    "5-9, with LoRA": (0.88, None),
    "0-4, LoRA switched off": (0.9, None),
    "share of parameters trained": (None, 0.15),
    "vit.trained": (667493, 667493),
}


def measure(folder: Path) -> dict[str, Any]:
    """Run the example, and count the parameters of the tutorials' base on the meta device."""
    found: dict[str, Any] = recipes.example("image_classifier").main(str(folder))
    return found | {"vit": vit_base()}


def vit_base() -> dict[str, int]:
    """Return the numbers of parameters of ViT-Base with 101 labels (Food-101) and LoRA of rank 16."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    import peftly

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=101))
    total = sum(parameter.numel() for parameter in model.parameters())
    classifier = sum(parameter.numel() for parameter in model.classifier.parameters())
    peftly.attach(model, peftly.LoRA(rank=16, alpha=16, target_modules=("q_proj", "v_proj")))
    trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model).values())
    return {"total": total, "classifier": classifier, "trained": trained}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the accuracies, and the numbers of parameters of the tutorials' base."""
    result = content["result"]
    names = {
        "0-4, base": "0 to 4, base",
        "5-9, base": "5 to 9, base",
        "5-9, with LoRA": "5 to 9, with LoRA",
        "5-9, opened again": "5 to 9, opened again",
        "5-9, merged": "5 to 9, merged",
        "0-4, LoRA switched off": "0 to 4, LoRA switched off",
    }
    lines = ["| test images | accuracy |", "|---|---|"]
    lines += [f"| {text} | {result[name]:.1%} |" for name, text in names.items()]
    vit = result["vit"]
    lines += [
        "",
        f"Trained: {result['share of parameters trained']:.1%} of the parameters.",
        "",
        f"The tutorials' ViT-Base has {vit['total']:,} parameters with 101 labels. {vit['trained']:,} are trained: "
        f"LoRA, and the {vit['classifier']:,} of the classifier.",
        "",
        f"Measured in float32 with 1 thread of a CPU ({content['environment']['cpu']}).",
    ]
    return {"vit": "\n".join(lines)}
