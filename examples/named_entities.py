"""Named entities with LoRA in Python: train on tagged words, and tag the words of a new sentence.

Run it with `python examples/named_entities.py` (half a minute on a CPU).
"""

from pathlib import Path

import peftly

DATA = Path(__file__).parent / "data"


def main(
    base: str = "minilm-l6",
    train: str = str(DATA / "named_entities.jsonl"),
    test: str = str(DATA / "named_entities_test.jsonl"),
    folder: str = "runs/named_entities_python",
    epochs: int = 10,
) -> dict[str, object]:
    """Train, score the entities of the test sentences, save, open again, and tag a new sentence."""
    tags = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    model, tokenizer = peftly.load_base(base, task="token_classification", labels=sorted(tags))
    peftly.attach(model, peftly.LoRA(rank=8, target_modules="all-linear"))
    data = peftly.load_data(train, tokenizer, task="token_classification", test=test, validation_fraction=0.2)
    peftly.train(model, data, peftly.TrainConfig(epochs=epochs))
    scores = peftly.evaluate(model, tokenizer, data.test, data.row_format)
    print(f"test F1 of entities {scores.entity_f1:.1%}")

    peftly.save_adapter(model, f"{folder}/adapter")
    opened, tokenizer = peftly.load(f"{folder}/adapter")
    words = ["Ada", "Wright", "flew", "from", "Lisbon", "to", "Oslo", "for", "Kestrel", "Bank", "."]
    (tagged,) = peftly.tag_words(opened, tokenizer, [words])
    print(" ".join(f"{word}/{tag}" if tag != "O" else word for word, tag in tagged))
    return {"entity_f1": scores.entity_f1, "tagged": tagged}


if __name__ == "__main__":
    main()
