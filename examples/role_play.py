"""A chat model takes the part of one person: LoRA on the attention, trained on the assistant's turns alone.

Run it with `python examples/role_play.py` (two minutes on two CPU cores). The tutorials' base is another value of BASE.
"""

from pathlib import Path
from typing import Any

import peftly

BASE = "smollm2-135m"  # of the tutorials: "THUDM/glm-4-9b-chat-hf", which needs a GPU
DATA = Path(__file__).parent / "data" / "role_play.jsonl"
SYSTEM = "你是青石镇听雨楼的说书先生柳三更。"
QUESTIONS = ("你是谁？", "你会下棋吗？", "我有点想家。")


def main(folder: str = "runs/role-script", epochs: int = 4, new_tokens: int = 48) -> dict[str, Any]:
    """Train the part, and return the losses of held-out conversations and the answers to three questions."""
    model, tokenizer = peftly.load_base(BASE)
    data = peftly.load_data(DATA, tokenizer, max_length=384, validation_fraction=0.2)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    peftly.attach(model, peftly.LoRA(rank=8, alpha=32, dropout=0.1, target_modules=attention))
    before = peftly.evaluate(model, tokenizer, data.validation, data.row_format)  # a new LoRA changes nothing
    config = peftly.TrainConfig(epochs=epochs, batch_size=1, gradient_accumulation_steps=8, learning_rate=1e-3)
    peftly.train(model, data, config, tokenizer=tokenizer, out=folder)
    after = peftly.evaluate(model, tokenizer, data.validation, data.row_format)
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in QUESTIONS]
    answers = peftly.generate(model, tokenizer, chats, max_new_tokens=new_tokens)
    return {"before": before.loss, "after": after.loss, **dict(zip(QUESTIONS, answers, strict=True))}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value}")
