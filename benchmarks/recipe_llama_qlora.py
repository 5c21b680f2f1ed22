"""Llama QLoRA: the tutorials' settings on all linear layers and on two, merged both ways, written to GGUF."""

from pathlib import Path
from typing import Any

import recipes

BASE = "smollm2-135m"
BOUNDS = {
    "all-linear.adapter.loss": (None, 0.8),
    "all-linear.trained.loss": (None, 0.8),
    "all-linear.original.loss": (1.0, None),
    "q_proj, v_proj.adapter.loss": (2.0, None),
    "all-linear.trained.relative": (None, 0.05),
    "all-linear.original.quantized": (0.1, None),
    "gguf.relative": (None, 0.1),
    "memory.nf4.base_bytes": (3.5e9, 4.2e9),
}
LLAMA_2_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
GPUS = (
    ("as little as possible, one example at once", None, None),
    ("16 GB", 16 * 10**9, None),
    ("24 GB", 24 * 10**9, None),
    ("ample", 10**12, None),
    ("ample, gradient checkpointing", 10**12, True),
)
"""Name, free bytes and gradient checkpointing of each estimate for a GPU."""
ROWS = str(recipes.ROOT / "src/peftly/sample_data/complaints")


def measure(folder: Path) -> dict[str, Any]:
    """Run the example, the same training on two layers of each block, and the estimates for Llama-2-7B."""
    script = recipes.example("llama_qlora")
    settings: dict[str, Any] = {"base": BASE, "rows": ROWS}
    result = {"all-linear": script.main(folder=str(folder / "all"), **settings)}
    model, tokenizer, data = script.train(folder=str(folder / "two"), target_modules=("q_proj", "v_proj"), **settings)
    result["q_proj, v_proj"] = {"adapter": script.score(model, tokenizer, data)}
    result["gguf"] = gguf(folder / "all")
    result["parameters"] = {name: adapter_parameters(folder / name) for name in ("all", "two")}
    return result | {"memory": memory(folder / "llama"), "gpu": gpu_memory(folder / "llama")}


def adapter_parameters(run: Path) -> int:
    """Return the number of values in the file of an adapter."""
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(run / "adapter" / "adapter_model.safetensors").values())


def gguf(run: Path) -> dict[str, Any]:
    """Return the size of the GGUF file, and how far its logits are from those of the merged model."""
    import torch

    import peftly

    (file,) = (run / "gguf").glob("*.gguf")
    opened, tokenizer = peftly.load_base(str(file), dtype="float32")
    merged = peftly.load_base(str(run / "trained"), dtype="float32").model
    inputs = tokenizer("Tweet text : late again Label :", return_tensors="pt")
    with torch.no_grad():
        ours, theirs = opened(**inputs).logits, merged(**inputs).logits
    return {"bytes": file.stat().st_size, "relative": float((ours - theirs).norm() / theirs.norm())}


def memory(folder: Path) -> dict[str, Any]:
    """Return the estimates for Llama-2-7B, from its config alone: batches of 4 with 512 tokens, on a CPU.

    Its files on the Hub are in fp16. A process has about 500 MB before it opens a base.
    """
    from transformers import LlamaConfig

    import peftly
    from peftly.runs import estimate_memory

    LlamaConfig(**LLAMA_2_7B, dtype="float16").save_pretrained(folder)
    found = {}
    for quantization in ("none", "nf4"):
        estimate = estimate_memory(
            str(folder),
            peftly.LoRA(rank=64, alpha=16),
            peftly.TrainConfig(batch_size=4),
            data=512,
            dtype="bfloat16",
            device="cpu",
            process_bytes=500_000_000,
            available_bytes=10**12,
            quantization=None if quantization == "none" else peftly.Quantization(kind="nf4", double=True),
        )
        names = ("base_bytes", "steps_bytes", "loading_bytes", "trained_parameters", "adapter_bytes")
        found[quantization] = {name: getattr(estimate, name) for name in names}
    return found


def gpu_memory(folder: Path) -> dict[str, int]:
    """Return the estimated peaks of the steps on a GPU, of Llama-2-7B in NF4, by the free memory of the GPU."""
    import peftly
    from peftly.runs import estimate_memory

    return {
        name: estimate_memory(
            str(folder),
            peftly.LoRA(rank=64, alpha=16),
            peftly.TrainConfig(batch_size=4, gradient_checkpointing=checkpointing),
            data=512,
            device="cuda",
            available_bytes=free,
            quantization=peftly.Quantization(kind="nf4", double=True),
        ).steps_bytes
        for name, free, checkpointing in GPUS
    }


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the tables of scores, and the estimates for Llama-2-7B."""
    result = content["result"]
    whole, two = result["all-linear"], result["q_proj, v_proj"]
    lines = ["| model | validation loss | accuracy |", "|---|---|---|"]
    rows = {
        "adapter of `q_proj` and `v_proj` over NF4": two["adapter"],
        "adapter of all linear layers over NF4": whole["adapter"],
        "the same, merged into the dequantised base": whole["trained"],
        "the same, merged into the original base": whole["original"],
    }
    lines += [f"| {name} | {scores['loss']:.3f} | {scores['accuracy']:.0%} |" for name, scores in rows.items()]
    counts = result["parameters"]
    lines += [
        "",
        f"Trained: {counts['all']:,} parameters (all linear layers), {counts['two']:,} (two). 1 epoch of 200 tweets, "
        "100 validation tweets.",
        "",
        f"Relative difference of logits: {whole['trained']['relative']:.1e} between the adapter and the first merged "
        f"model, {whole['original']['quantized']:.1e} between the adapter over NF4 and the second one, "
        f"{result['gguf']['relative']:.1e} between the first merged model and its GGUF file in q8_0 "
        f"({result['gguf']['bytes'] / 1e6:.0f} MB).",
        "",
        recipes.machine(content),
    ]
    costs = [
        "| Llama-2-7B, rank 64, all linear layers | base | peak of the steps | peak while opening |",
        "|---|---|---|---|",
    ]
    for name, text in {"none": "bfloat16", "nf4": "NF4, double quantisation"}.items():
        values = [
            f"{result['memory'][name][key] / 1e9:.1f} GB" for key in ("base_bytes", "steps_bytes", "loading_bytes")
        ]
        costs.append(f"| {text} | {' | '.join(values)} |")
    trained = result["memory"]["nf4"]
    costs += [
        "",
        "Estimates for batches of 4 examples with 512 tokens, from the config alone; "
        f"{trained['trained_parameters']:,} trained parameters, {trained['adapter_bytes'] / 1e6:.0f} MB in the file.",
    ]
    gpus = ["| free memory of the GPU | peak of the steps |", "|---|---|"]
    gpus += [f"| {name} | {bytes_ / 1e9:.1f} GB |" for name, bytes_ in result["gpu"].items()]
    return {"llama-qlora": "\n".join(lines), "llama-memory": "\n".join(costs), "llama-gpu": "\n".join(gpus)}
