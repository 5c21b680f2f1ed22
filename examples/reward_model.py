"""A reward model with LoRA: it learns from pairs of answers which one people prefer, and gives each answer a number.

Run it with `python examples/reward_model.py` (a minute on a CPU). With your pairs and a larger base, on a GPU:

    main("FacebookAI/roberta-large", "your_pairs.jsonl", "your_held_out_pairs.jsonl")
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from transformers import Trainer, TrainingArguments

import peftly

DATA = Path(__file__).parent / "data"


class PreferenceTrainer(Trainer):
    """Trains with the loss of Bradley and Terry: -log sigmoid(reward of the chosen - reward of the rejected answer)."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch: the chosen answers are its first half, the rejected ones its second half."""
        rewards = model(**inputs).logits[:, 0]
        chosen, rejected = rewards.chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        return (loss, {"rewards": rewards}) if return_outputs else loss


def main(
    base: str = "minilm-l6",
    train: str = str(DATA / "reward_pairs.jsonl"),
    test: str = str(DATA / "reward_pairs_test.jsonl"),
    folder: str = "runs/reward_model",
    epochs: int = 8,
    max_length: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Train on pairs, and return the fraction of held-out pairs whose chosen answer gets the larger number."""
    torch.manual_seed(seed)
    model, tokenizer = peftly.load_base(base, task="sequence_classification", labels=["reward"], dtype="float32")
    peftly.attach(model, peftly.LoRA(rank=8), seed=seed)
    pairs, held_out = rows_of(train), rows_of(test)

    def collate(batch: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        answers = [pair["chosen"] for pair in batch] + [pair["rejected"] for pair in batch]
        prompts = [pair["prompt"] for pair in batch] * 2
        length = {"padding": True, "truncation": True, "max_length": max_length}
        return dict(tokenizer(prompts, answers, return_tensors="pt", **length))

    before = accuracy(model, tokenizer, held_out, max_length)
    arguments = TrainingArguments(
        f"{folder}/trainer",
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        seed=seed,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
    )
    PreferenceTrainer(model, arguments, train_dataset=pairs, data_collator=collate).train()
    model.eval()
    peftly.save_adapter(model, f"{folder}/adapter", tokenizer=tokenizer)
    opened, tokenizer = peftly.load(f"{folder}/adapter", dtype="float32")
    found = {
        "before": before,
        "train": accuracy(opened, tokenizer, pairs, max_length),
        "held_out": accuracy(opened, tokenizer, held_out, max_length),
        "longer": sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in held_out) / len(held_out),
    }
    print("the chosen answer gets the larger reward: ", {name: f"{value:.1%}" for name, value in found.items()})
    return found


def rows_of(file: str) -> list[dict[str, str]]:
    """Return the pairs of a file: rows with `prompt`, `chosen` and `rejected`."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def accuracy(model: torch.nn.Module, tokenizer: object, pairs: list[dict[str, str]], max_length: int) -> float:
    """Return the fraction of pairs whose chosen answer gets the larger reward."""
    texts = [(pair["prompt"], pair[kind]) for kind in ("chosen", "rejected") for pair in pairs]
    rewards = [
        next(iter(scores.values())) for scores in peftly.classify(model, tokenizer, texts, max_length=max_length)
    ]
    chosen, rejected = rewards[: len(pairs)], rewards[len(pairs) :]
    return sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(pairs)


if __name__ == "__main__":
    main()
