"""LoRA in sentence-transformers: an embedding model learns which complaints are about the same thing.

Run it with `pip install 'peftly[interop]'` and `python examples/sentence_embeddings.py` (a minute on a CPU).
"""

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import peftly

PAIRS = [
    ("the train was an hour late", "delay"),
    ("the app crashes when I log in", "software"),
    ("my order never arrived", "delivery"),
    ("I was charged twice this month", "billing"),
]


def main(folder: str = "runs/embeddings", steps: int = 20) -> dict[str, float]:
    """Train, save, open with sentence-transformers alone, and return similarities before and after."""
    base = peftly.load_base("minilm-l6").model.config.name_or_path  # the folder of the base
    model = SentenceTransformer(base)
    texts, topics = zip(*PAIRS, strict=True)

    def similarity(of: SentenceTransformer) -> float:
        return float(of.similarity(of.encode(texts), of.encode(topics)).diagonal().mean())

    before = similarity(model)
    peftly.attach(model[0].model, peftly.LoRA(rank=8))  # the body of transformers inside the first module
    arguments = SentenceTransformerTrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[]
    )
    data = Dataset.from_dict({"anchor": texts, "positive": topics})
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    model.save_pretrained(f"{folder}/model")  # the adapter, the tokenizer and the pooling; opening it needs PEFT
    opened = SentenceTransformer(f"{folder}/model")
    return {"before": before, "after": similarity(model), "opened again": similarity(opened)}


if __name__ == "__main__":
    print(main())
