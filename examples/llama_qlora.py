"""QLoRA from rows to a model that other tools open: train over 4 bits, merge, write GGUF, generate with transformers.

Run it with `pip install 'peftly[quant]'` and `python examples/llama_qlora.py` (two minutes on two CPU cores). With
`BASE = "meta-llama/Llama-2-7b-hf"` and your own rows it is the job of the Llama-2 tutorials, on one GPU.
"""

from typing import Any

import transformers

import peftly

BASE = "smollm2-135m"
ROWS = "src/peftly/sample_data/complaints"
PROMPT = "Tweet text : @shop third week and my parcel is still nowhere Label :"


def train(base: str, rows: str, folder: str, target_modules: Any = "all-linear", **settings: Any) -> tuple[Any, ...]:
    """Train over 4 bits with the settings of the tutorials, and return the model, its tokenizer and the data."""
    model, tokenizer = peftly.load_base(base, quantization=peftly.Quantization(kind="nf4", double=True))
    peftly.attach(model, peftly.LoRA(rank=64, alpha=16, dropout=0.1, target_modules=target_modules))
    data = peftly.load_data(
        f"{rows}/train.jsonl",
        tokenizer,
        validation=f"{rows}/validation.jsonl",
        template="Tweet text : {text} Label :",
        target="label",
    )
    tutorial: dict[str, Any] = {
        "epochs": 1, "batch_size": 4, "optimizer": "paged_adamw", "learning_rate": 2e-4, "weight_decay": 0.001,
        "max_grad_norm": 0.3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03,
    }  # fmt: skip
    peftly.train(model, data, peftly.TrainConfig(**tutorial | settings), out=folder)
    return model, tokenizer, data


def score(model: Any, tokenizer: Any, data: Any) -> dict[str, Any]:
    """Return the scores on the validation rows."""
    found = peftly.evaluate(model, tokenizer, data.validation, data.row_format)
    return {"loss": found.loss, "accuracy": found.accuracy}


def main(base: str = BASE, rows: str = ROWS, folder: str = "runs/llama-qlora", **settings: Any) -> dict[str, Any]:
    """Train, merge both ways, write GGUF, and return the scores of all models."""
    model, tokenizer, data = train(base, rows, folder, **settings)
    found: dict[str, Any] = {"adapter": score(model, tokenizer, data)}
    for into in ("trained", "original"):  # the weights that were trained over, and those before quantisation
        parity = peftly.save_merged(f"{folder}/adapter", f"{folder}/{into}", into=into)
        found[into] = score(*peftly.load_base(f"{folder}/{into}"), data)
        found[into] |= {"relative": parity.relative, "quantized": parity.quantized and parity.quantized[0]}
    peftly.export(f"{folder}/adapter", "gguf", f"{folder}/gguf", dtype="q8_0")

    # The merged model needs no peftly.
    generator = transformers.pipeline("text-generation", f"{folder}/trained")
    found["answer"] = generator(PROMPT, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    return found


if __name__ == "__main__":
    print(main())
