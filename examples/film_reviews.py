"""Film reviews with BERT and LoRA in Python: train, merge, and read the result with a pipeline of transformers.

Run it with `python examples/film_reviews.py` (a minute on a CPU). With IMDb, on a GPU:

    main("google-bert/bert-base-uncased", "stanfordnlp/imdb", "stanfordnlp/imdb", labels=("neg", "pos"))
"""

from pathlib import Path

from transformers import pipeline

import peftly

DATA = Path(__file__).parent / "data"


def main(
    base: str = "minilm-l6",
    train: str = str(DATA / "film_reviews.jsonl"),
    test: str = str(DATA / "film_reviews_test.jsonl"),
    labels: tuple[str, ...] = ("negative", "positive"),
    folder: str = "runs/film_reviews_python",
    epochs: int = 5,
) -> dict[str, object]:
    """Train LoRA, and classify two reviews with the adapted model and with the merged one."""
    data = peftly.DataConfig(train=train, test=test, validation_fraction=0.2, max_length=256)
    model, tokenizer = peftly.load_base(base, task="sequence_classification", labels=labels)
    peftly.attach(model, peftly.LoRA(rank=8))
    rows = peftly.load_data(data, tokenizer, task="sequence_classification")
    peftly.train(model, rows, peftly.TrainConfig(epochs=epochs))
    scores = peftly.evaluate(model, tokenizer, rows.test, rows.row_format)
    print(f"test accuracy {scores.accuracy:.1%}")

    reviews = ["A wonderful film, I cried and laughed.", "Dull, much too long, and badly acted."]
    adapted = pipeline("text-classification", model=model.eval(), tokenizer=tokenizer)(reviews)
    peftly.save_adapter(model, f"{folder}/adapter")
    peftly.save_merged(f"{folder}/adapter", f"{folder}/merged")
    merged = pipeline("text-classification", model=f"{folder}/merged")(reviews)  # transformers alone
    for review, verdict in zip(reviews, merged, strict=True):
        print(f"{verdict['label']} ({verdict['score']:.2f}): {review}")
    return {"accuracy": scores.accuracy, "adapted": adapted, "merged": merged}


if __name__ == "__main__":
    main()
