"""Complaints on Twitter with a soft prompt in Python: perplexity after every epoch, F1, and predictions for RAFT.

Run it with `python examples/twitter_complaints.py` (some minutes on a CPU). With bloomz-560m and RAFT itself, on a GPU:

    raft = "ought/raft:twitter_complaints"
    main("bigscience/bloomz-560m", f"{raft}[train[:40]]", f"{raft}[train[40:]]", test=f"{raft}[test]", epochs=50)
"""

import csv
import json
from pathlib import Path

import peftly
from peftly.runs import OpenRun

DATA = Path(__file__).parent / "data"
PROMPT = "Classify if the tweet is a complaint or not:"


def main(
    base: str = "smollm2-135m",
    train: str = str(DATA / "twitter_complaints.jsonl"),
    validation: str = str(DATA / "twitter_complaints_validation.jsonl"),
    test: str = str(DATA / "twitter_complaints_test.jsonl"),
    folder: str = "runs/twitter_complaints_python",
    epochs: int = 6,
) -> dict[str, object]:
    """Train the prompt, score it on held-out tweets, and write predictions in the form of RAFT."""
    model, tokenizer = peftly.load_base(base)
    settings = peftly.DataConfig(
        train=train, validation=validation, test="none", format="twitter-complaints", max_length=64
    )
    data = peftly.load_data(settings, tokenizer)
    peftly.attach(model, peftly.PromptTuning(num_virtual_tokens=8, init_text=PROMPT), tokenizer=tokenizer)
    peftly.train(model, data, peftly.TrainConfig(epochs=epochs, batch_size=4, learning_rate=0.03), out=folder)
    curve = perplexities(Path(folder))
    for epoch in curve:
        print("epoch {epoch:.0f}: perplexity {train:.3f} in training, {held_out:.3f} held out".format(**epoch))
    scores = peftly.evaluate(model, tokenizer, data.validation, data.row_format)
    print(f"held-out accuracy {scores.accuracy:.1%}, macro-F1 {scores.macro_f1:.1%}")

    rows = peftly.predict(OpenRun(model, tokenizer, data.row_format), test)
    with (Path(folder) / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("ID", "Label"))
        writer.writerows((row["ID"], row["prediction"]) for row in rows)
    return {"curve": curve, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "predictions": len(rows)}


def perplexities(run: Path) -> list[dict[str, float]]:
    """Return the perplexity of training and held-out tweets after each epoch of a run, from its `metrics.jsonl`."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {"epoch": record["epoch"], "train": record["train_perplexity"], "held_out": record["perplexity"]}
        for record in records
        if record["kind"] == "evaluation"
    ]


if __name__ == "__main__":
    main()
