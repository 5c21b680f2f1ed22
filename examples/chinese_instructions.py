"""Chinese instructions with a soft prompt: train, continue from a checkpoint, answer, and the pipeline of transformers.

Run it with `python examples/chinese_instructions.py` (two minutes on two CPU cores). After Ctrl-C the same command goes
on from the last checkpoint. The base and the data of the tutorials are other values of BASE and DATA.
"""

from pathlib import Path
from typing import Any

import transformers

import peftly

BASE = "smollm2-135m"  # of the tutorials: "Langboat/bloom-1b4-zh"
DATA = Path(__file__).parent / "data" / "chinese_instructions.jsonl"  # of the tutorials: "alpaca_data_zh", a folder
TEXT = "下面是一段人与智能助手的对话。"
QUESTION = {"instruction": "考试有哪些技巧？", "input": ""}


def save_dataset(folder: str | Path = "alpaca_data_zh") -> None:
    """Write the rows as a folder that `datasets.load_from_disk` opens, as the tutorials have theirs."""
    from datasets import Dataset

    Dataset.from_json(str(DATA)).save_to_disk(folder)


def main(folder: str = "runs/chinese-script", epochs: int = 1, new_tokens: int = 48) -> dict[str, Any]:
    """Train a soft prompt, and return the losses of the held-out rows and an answer before and after."""
    model, tokenizer = peftly.load_base(BASE)
    data = peftly.load_data(DATA, tokenizer, format="alpaca-human", max_length=256, validation_fraction=0.2)
    # The tutorials' other methods: PromptTuning(num_virtual_tokens=10, init="random"),
    # PTuning(num_virtual_tokens=10, encoder="lstm"), PrefixTuning(num_virtual_tokens=10), LoRA()
    peftly.attach(model, peftly.PromptTuning(init_text=TEXT, num_virtual_tokens="text"), tokenizer=tokenizer)
    with peftly.use_adapters(model):  # without adapters: the base
        before = peftly.evaluate(model, tokenizer, data.validation, data.row_format)
    config = peftly.TrainConfig(epochs=epochs, batch_size=4, gradient_accumulation_steps=8)
    peftly.train(model, data, config, tokenizer=tokenizer, out=folder, resume=True)
    after = peftly.evaluate(model, tokenizer, data.validation, data.row_format)

    prompt = data.row_format.format_prompt(QUESTION)
    (answer,) = peftly.generate(model, tokenizer, prompt, max_new_tokens=new_tokens)
    ask = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": new_tokens, "do_sample": False, "return_full_text": False}
    # The space after "Assistant:" is the first character of an answer, so the prompt ends with the colon.
    piped = ask(f"Human: {QUESTION['instruction']}\n\nAssistant:", **options)[0]["generated_text"]
    return {"before": before.loss, "after": after.loss, "answer": answer, "pipeline": piped}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value}")
