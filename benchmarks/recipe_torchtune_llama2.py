"""torchtune's Llama-2 job on short instructions, and the estimates beside the memory that torchtune measured."""

import json
from pathlib import Path
from typing import Any

import recipes

BASE = "smollm2-135m"
BOUNDS = {
    "run.loss": (None, 1.2),
    "exact": (0.3, None),
    "gain": (2, None),
    "memory.q_proj, v_proj, rank 8.base_bytes": (13e9, 14e9),
    "memory.q_proj, v_proj, rank 8.trained_parameters": (4194304, 4194304),
}
SMALL = ("train.gradient_accumulation_steps=4", "train.warmup_steps=4", "train.epochs=3")
HEADLINES = {"loss, LoRA": ("run.loss", ".2f"), "exact answers, LoRA": ("exact", ".0%")}
LLAMA_2_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
CASES = {
    "q_proj, v_proj, rank 8": (("q_proj", "v_proj"), 8, 15.57),
    "all linear layers, rank 8": ("all-linear", 8, 15.87),
    "q_proj, v_proj, rank 64": (("q_proj", "v_proj"), 64, 15.86),
    "all linear layers, rank 64": ("all-linear", 64, 17.04),
}
"""Target modules, rank, and the peak in GB that torchtune's page gives; its "all layers" includes the output head."""


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train with smaller steps than torchtune's, and estimate the memory of Llama-2-7B."""
    options = [word for setting in SMALL for word in ("--set", setting)]
    out = recipes.train("examples/torchtune_llama2.yaml", folder / "run", *options, seed=seed)
    run = recipes.scores(out)
    exact = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["exact_match"]
    untouched = run["baselines"]["untouched base"]["loss"]
    found = {"run": run, "exact": exact, "untouched": untouched, "gain": untouched - run["loss"]}
    return found | {"memory": memory(folder / "llama")}


def memory(folder: Path) -> dict[str, Any]:
    """Return the estimates for Llama-2-7B in bfloat16, with batches of 2 examples."""
    from transformers import LlamaConfig

    import peftly
    from peftly.runs import estimate_memory

    LlamaConfig(**LLAMA_2_7B).save_pretrained(folder)
    found = {}
    for name, (targets, rank, _) in CASES.items():
        method = peftly.LoRA(rank=rank, alpha=2 * rank, target_modules=targets)
        config = peftly.TrainConfig(batch_size=2, gradient_checkpointing=True)
        estimate = estimate_memory(str(folder), method, config, data=512, dtype="bfloat16")
        keys = ("base_bytes", "training_bytes", "trained_parameters")
        found[name] = {key: getattr(estimate, key) for key in keys}
    return found


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the scores of the run, and the estimates beside torchtune's measurements."""
    result = content["result"]
    run = result["run"]
    lines = [
        "| model | loss | exact answers | trained parameters | bytes |",
        "|---|---|---|---|---|",
        f"| untouched base | {result['untouched']:.2f} |  |  |  |",
        f"| LoRA with torchtune's settings | {run['loss']:.2f} | {result['exact']:.0%} | {run['parameters']:,} | "
        f"{run['bytes']:,} |",
        "",
        f"{run['examples']} held-out instructions; {run['steps']} steps.",
        "",
        recipes.machine(content),
    ]
    costs = [
        "| Llama-2-7B in bfloat16 | trained parameters | torchtune, measured on a GPU | peftly, estimated for a CPU |"
    ]
    costs.append("|---|---|---|---|")
    for name, (_, _, measured) in CASES.items():
        found = result["memory"][name]
        costs.append(
            f"| {name} | {found['trained_parameters']:,} | {measured} GB | {found['training_bytes'] / 1e9:.2f} GB |"
        )
    return {"torchtune": "\n".join(lines), "torchtune-memory": "\n".join(costs)}
