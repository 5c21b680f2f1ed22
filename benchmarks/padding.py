"""Loss of one batch of tweets under prompt tuning, with more and more padding: PEFT beside peftly.

    python benchmarks/padding.py

writes benchmarks/results/padding.json, from which benchmarks/beside_peft.py takes figures of README.md. Both tools have
the same base, the same eight virtual tokens and the same texts; the loss is the mean over the tokens of the texts.
"""

import json
from importlib.resources import as_file, files
from pathlib import Path

import torch
from peft import PromptTuningConfig, get_peft_model

import peftly

RESULTS = Path(__file__).parent / "results" / "padding.json"
BASE, TOKENS, TEXTS = "smollm2-135m", 8, 4
PADDED_TO = (0, 64, 128)
"""Lengths to which the batch is padded on the left, as batches for `generate` are; 0: the longest text."""


def batch(tokenizer, texts: list[str], length: int) -> dict[str, torch.Tensor]:
    """Return a batch padded on the left, with labels on the tokens of the texts."""
    tokenizer.padding_side = "left"
    padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
    encoded = tokenizer(texts, return_tensors="pt", **padding)
    mask = encoded["attention_mask"]
    # The first token of a text is left out: in a row without padding transformers has no position that predicts it.
    labels = encoded["input_ids"].masked_fill(mask.cumsum(1) < 2, -100)
    return {"input_ids": encoded["input_ids"], "attention_mask": mask, "labels": labels}


@torch.no_grad()
def losses(model, tokenizer, texts: list[str]) -> list[float]:
    """Return the loss of the same texts for each amount of padding."""
    model.eval()
    return [float(model(**batch(tokenizer, texts, length)).loss) for length in PADDED_TO]


def main() -> None:
    """Measure, and write the results."""
    with as_file(files("peftly") / "sample_data" / "complaints" / "test.jsonl") as file:
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()[:TEXTS]]
    model, tokenizer = peftly.load_base(BASE, dtype="float32")
    method = peftly.PromptTuning(num_virtual_tokens=TOKENS, init="text", init_text=" Is this tweet a complaint or not?")
    peftly.attach(model, method, tokenizer=tokenizer)
    (prompt,) = peftly.trainable_parameters(model).values()
    rows, ours = prompt.detach().clone(), losses(model, tokenizer, texts)
    peftly.detach(model)
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(rows)
    results = {"base": BASE, "padded_to": PADDED_TO, "peftly": ours, "PEFT": losses(wrapped, tokenizer, texts)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(results)


if __name__ == "__main__":
    main()
