"""LoRA in transformers' Trainer: the best checkpoint is loaded at the end, and a stopped training can be resumed.

Run it with `python examples/trainer_lora.py` (five minutes on a CPU), and again with `resume=True` after Ctrl-C.
"""

import transformers
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import peftly

ROWS = [f"Question: what is {a} plus {b}? Answer: {a + b}." for a in range(2, 12) for b in range(2, 12)]


def main(folder: str = "runs/trainer", steps: int = 60, resume: bool = False) -> dict[str, float]:
    """Train, load the best checkpoint, and write a text with the trained adapter and with the base."""
    model, tokenizer = peftly.load_base("smollm2-135m", dtype="float32")
    peftly.attach(model, peftly.LoRA(rank=8))
    rows = [tokenizer(row) for row in ROWS]
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=steps // 2,
        save_steps=steps // 2,
        load_best_model_at_end=True,
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows[:-8],
        eval_dataset=rows[-8:],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=resume)
    generator = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = "Question: what is 7 plus 8? Answer:"
    print(generator(prompt, max_new_tokens=3, do_sample=False)[0]["generated_text"])
    return {"before": before, "after": trainer.evaluate()["eval_loss"]}


if __name__ == "__main__":
    print(main())
