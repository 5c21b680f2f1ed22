"""LoRA in sentence-transformers: an embedding model learns which requests of customers are about the same topic.

Run it with `pip install '.[interop]'` and `python examples/sentence_embeddings.py` (a minute on a CPU). The scores
are those of requests that are not in the training.
"""

import json
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import peftly

DATA = Path(__file__).parent / "data" / "support_topics.jsonl"


def main(folder: str = "runs/embeddings", steps: int = 100, base: str = "minilm-l6", seed: int = 0) -> dict[str, float]:
    """Train, save, open with sentence-transformers alone, and return the scores of all three."""
    model = SentenceTransformer(peftly.load_base(base).model.config.name_or_path)  # the folder of the base
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    topics = sorted({row["topic"] for row in rows})
    test = [row for row in rows if row["split"] == "test"]

    def scores(of: SentenceTransformer, name: str) -> dict[str, float]:
        """Return the share of test requests that are nearest to their topic, and their similarity to it."""
        similarity = of.similarity(of.encode([row["text"] for row in test]), of.encode(topics))
        right = [topics.index(row["topic"]) for row in test]
        accuracy = sum(int(line.argmax()) == topic for line, topic in zip(similarity, right, strict=True)) / len(test)
        own = sum(float(line[topic]) for line, topic in zip(similarity, right, strict=True)) / len(test)
        return {f"{name}: accuracy": accuracy, f"{name}: similarity": own}

    found = scores(model, "before")
    peftly.attach(model[0].model, peftly.LoRA(rank=8), seed=seed)  # the body of transformers inside the first module
    arguments = SentenceTransformerTrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a topic that is twice in a batch would be its own wrong answer
        seed=seed,
        report_to=[],
    )
    train = [row for row in rows if row["split"] == "train"]
    data = Dataset.from_dict({"anchor": [row["text"] for row in train], "positive": [row["topic"] for row in train]})
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    found |= scores(model, "after")
    model.save_pretrained(f"{folder}/model")  # the adapter, the tokenizer and the pooling; opening it needs PEFT
    return found | scores(SentenceTransformer(f"{folder}/model"), "opened again")


if __name__ == "__main__":
    print(main())
