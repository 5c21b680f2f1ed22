"""Role play: LoRA on the attention of SmolLM2-135M, on conversations with a system message."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import example, machine, scores, train

BASE = "smollm2-135m"
CONFIG = "examples/role_play.yaml"
BOUNDS: dict[str, tuple[float | None, float | None]] = {"base.loss": (3.2, 3.6), "lora.loss": (None, 2.95)}
HEADLINES = {"held-out loss, LoRA on the attention": ("lora.loss", ".3f")}
QUESTIONS = (
    "你会下棋吗？",
    "我有点想家。",
    "早上好！",
    "你最喜欢吃什么？",
    "镇上有集市吗？",
    "你觉得什么是朋友？",
    "天冷了，你穿什么？",
    "给我讲讲你小时候的事。",
    "我明天要出远门。",
    "你每天几点起床？",
)
"""Questions that no conversation of the data has."""
NEW_TOKENS = 40


def measure(folder: Path, base: Sequence[object] = (), seed: int = 0) -> dict[str, Any]:
    """Train the part, and answer new questions with and without it.

    Args:
        folder: folder of the run.
        base: further options of `peftly train`, such as another base.
        seed: seed of the training.
    """
    import peftly

    run = train(CONFIG, folder / "role", "--set", "train.generation_examples=0", *base, seed=seed)
    found = scores(run)
    model, tokenizer = peftly.load(run)
    system = {"role": "system", "content": example("role_play").SYSTEM}
    chats = [[system, {"role": "user", "content": question}] for question in QUESTIONS]
    answers = {"lora": peftly.generate(model, tokenizer, chats, max_new_tokens=NEW_TOKENS)}
    with peftly.use_adapters(model):
        answers["base"] = peftly.generate(model, tokenizer, chats, max_new_tokens=NEW_TOKENS)
    losses = {"base": found["baselines"]["untouched base"]["loss"], "lora": found["loss"]}
    return {
        "run": found,
        "answers": answers,
        **{name: {"loss": loss, "perplexity": math.exp(loss)} for name, loss in losses.items()},
    }


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page."""
    result, run = content["result"], content["result"]["run"]
    lines = ["| | held-out loss | perplexity | trained parameters | adapter file |"]
    lines.append("|---|---|---|---|---|")
    sizes = {"base": "0 | ", "lora": f"{run['parameters']:,} | {run['bytes'] / 1024:,.0f} KiB"}
    for name, title in (("base", "untouched base"), ("lora", "LoRA on the attention")):
        found = result[name]
        lines.append(f"| {title} | {found['loss']:.3f} | {found['perplexity']:.1f} | {sizes[name]} |")
    return {"role": "\n".join([*lines, "", machine(content)])}
