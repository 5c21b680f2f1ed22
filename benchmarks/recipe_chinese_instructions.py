"""Chinese instructions: soft prompts, prefixes and LoRA on SmolLM2-135M, and answers in a batch beside PEFT's."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import ROOT, cpu_seconds, machine, scores, train

BASE = "smollm2-135m"
CONFIG = "examples/chinese_instructions.yaml"
ROWS = ROOT / "examples" / "data" / "chinese_instructions.jsonl"
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "base.loss": (2.5, 2.65),
    "runs.text.loss": (None, 2.45),
    "runs.prefix.loss": (None, 2.36),
    "runs.lora.loss": (None, 2.39),
    "runs.p_tuning_more_steps.loss": (None, 2.45),
    "padding.peftly.largest_error": (None, 1e-5),
    "padding.peftly.changed": (0, 0),
    "padding.peft.largest_error": (0.05, None),
}
P_TUNING = ("--method", "p_tuning", "--set", "method.num_virtual_tokens=10")
PREFIX = ("--method", "prefix_tuning", "--set", "method.num_virtual_tokens=10")
VARIANTS: dict[str, tuple[str, ...]] = {
    "text": (),
    "random": (
        "--set",
        "method.init=random",
        "--set",
        "method.init_text=null",
        "--set",
        "method.num_virtual_tokens=10",
    ),
    "p_tuning": P_TUNING,
    "p_tuning_lstm": (*P_TUNING, "--set", "method.encoder=lstm"),
    "prefix": PREFIX,
    "prefix_projection": (*PREFIX, "--set", "method.projection=true"),
    "lora": ("--method", "lora"),
    "p_tuning_more_steps": (*P_TUNING, "--set", "train.gradient_accumulation_steps=1"),
}
"""Options of `peftly train` behind the YAML file, by the name of the run."""

NAMES = {
    "text": "prompt tuning, text",
    "random": "prompt tuning, random, 10 virtual tokens",
    "p_tuning": "P-tuning (MLP), 10 virtual tokens",
    "p_tuning_lstm": "P-tuning (LSTM), 10 virtual tokens",
    "prefix": "prefix tuning, 10 virtual tokens",
    "prefix_projection": "prefix tuning with a projection, 10 virtual tokens",
    "lora": "LoRA",
    "p_tuning_more_steps": "P-tuning (MLP), 10 virtual tokens, 60 steps of 4 examples",
}
HEADLINES = {f"held-out loss, {title}": (f"runs.{name}.loss", ".3f") for name, title in NAMES.items()}
QUICK = ("--set", "train.generation_examples=0")
QUESTIONS = 8
NEW_TOKENS = 16


def measure(folder: Path, base: Sequence[object] = (), seed: int = 0) -> dict[str, Any]:
    """Train every variant, and compare answers alone and in a batch with those of PEFT.

    Args:
        folder: folder of the runs.
        base: further options of `peftly train`, such as another base.
        seed: seed of the trainings.
    """
    runs = {name: measure_run(folder / name, options, base, seed) for name, options in VARIANTS.items()}
    loss = runs["text"]["baselines"]["untouched base"]["loss"]
    return {"base": {"loss": loss, "perplexity": math.exp(loss)}, "runs": runs, "padding": padding(folder / "text")}


def measure_run(run: Path, options: Sequence[str], base: Sequence[object] = (), seed: int = 0) -> dict[str, Any]:
    """Train one variant, and return its results.

    Args:
        run: run folder, whose name is that of the variant.
        options: options of the variant.
        base: further options of `peftly train`.
        seed: seed of the training.
    """
    start = cpu_seconds()
    baselines = () if run.name == "text" else ("--set", "baselines=false")
    found = scores(train(CONFIG, run, *options, *QUICK, *baselines, *base, seed=seed))
    return found | {"cpu_seconds": round(cpu_seconds() - start, 1), "perplexity": math.exp(found["loss"])}


def padding(run: Path) -> dict[str, Any]:
    """Compare the answers of a prompt to questions alone and in a left-padded batch, in fp32, here and in PEFT.

    Returns:
        For each tool, the largest relative difference of the logits of the next token, and the number of answers that
        change.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    import peftly

    model, tokenizer = peftly.load(run, dtype="float32")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()[:QUESTIONS]]
    prompts = ["\n".join(["Human: " + row["instruction"], row["input"]]).strip() + "\n\nAssistant: " for row in rows]
    base = model.config.name_or_path
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run / "adapter"
    )
    return {
        "questions": len(prompts),
        "peftly": _alone_and_together(model, tokenizer, prompts),
        "peft": _alone_and_together(theirs.eval(), tokenizer, prompts),
    }


def _alone_and_together(model: Any, tokenizer: Any, prompts: list[str]) -> dict[str, Any]:
    """Generate with one model, each prompt alone and all in a batch."""

    def run(texts: list[str]) -> tuple[Any, list[str]]:
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        found = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        new = found.sequences[:, -len(found.logits) :]
        return found.logits[0], tokenizer.batch_decode(new, skip_special_tokens=True)

    logits, together = run(prompts)
    errors, changed = [], 0
    for index, prompt in enumerate(prompts):
        alone, (text,) = run([prompt])
        errors.append(float((logits[index] - alone[0]).norm() / alone[0].norm()))
        changed += text != together[index]
    return {"largest_error": max(errors), "changed": changed}


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page."""
    result = content["result"]
    lines = ["| | held-out loss | perplexity | trained parameters | adapter file | CPU seconds | peak memory |"]
    lines.append("|---|---|---|---|---|---|---|")
    base = result["base"]
    lines.append(f"| untouched base | {base['loss']:.3f} | {base['perplexity']:.1f} | 0 | | | |")
    for name, title in NAMES.items():
        run = result["runs"][name]
        lines.append(
            f"| {title} | {run['loss']:.3f} | {run['perplexity']:.1f} | {run['parameters']:,} | "
            f"{run['bytes'] / 1024:,.1f} KiB | {run['cpu_seconds']:.0f} | {run['peak_memory_bytes'] / 2**20:,.0f} MiB |"
        )
    batch = ["| | largest relative difference of logits | answers that change |", "|---|---|---|"]
    for tool, title in (("peft", "PEFT"), ("peftly", "peftly")):
        found = result["padding"][tool]
        changed = f"{found['changed']} of {result['padding']['questions']} answers"
        batch.append(f"| {title} | {found['largest_error']:.1e} | {changed} |")
    return {"results": "\n".join([*lines, "", machine(content)]), "batch": "\n".join(batch)}
