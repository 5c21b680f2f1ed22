"""LoRA for translation: train on pairs of sentences, translate held-out ones, and count the exact translations.

Run it with `python examples/translation.py` (three minutes on two CPU cores). With `BASE = "bigscience/mt0-large"` it
is the job of the tutorials, on an encoder-decoder model; nothing else changes.
"""

from pathlib import Path
from typing import Any

import peftly
from peftly.models import task_of

BASE = "smollm2-135m"
PAIRS = str(Path(__file__).parent / "data" / "translation.jsonl")


def main(base: str = BASE, pairs: str = PAIRS, folder: str = "runs/translation", **settings: Any) -> dict[str, Any]:
    """Train, translate, and return the scores before and after."""
    model, tokenizer = peftly.load_base(base)
    data = peftly.load_data(
        pairs,
        tokenizer,
        task=task_of(model),  # seq2seq_lm for an encoder-decoder model
        template="Translate to German: {source}",
        target="target",
        validation_fraction=0.2,
        max_length=128,
    )

    def scores() -> dict[str, Any]:
        held_out = data.validation
        found = peftly.evaluate(model, tokenizer, held_out, data.row_format, generate=len(held_out.examples))
        answers = [prediction.predicted for prediction in found.predictions[:3]]
        return {"loss": found.loss, "exact": found.exact_match, "answers": answers}

    peftly.attach(model, peftly.LoRA(rank=8, alpha=32, dropout=0.1), seed=settings.get("seed", 0))
    with peftly.use_adapters(model):
        before = scores()
    tutorial: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
    peftly.train(model, data, peftly.TrainConfig(**tutorial | settings), out=folder)
    return {"before": before, "after": scores(), "rows": len(data.validation.examples)}


if __name__ == "__main__":
    print(main())
