"""Film reviews with BERT and LoRA: accuracy after every epoch, the best epoch kept, and a pipeline."""

import numpy as np
from datasets import load_from_disk
from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

BASE = "bert-base-uncased"
LABELS = {0: "negative", 1: "positive"}

reviews = load_from_disk("imdb")
tokenizer = AutoTokenizer.from_pretrained(BASE)
encoded = reviews.map(lambda row: tokenizer(row["text"], truncation=True, max_length=96), batched=True)

model = AutoModelForSequenceClassification.from_pretrained(
    BASE, num_labels=2, id2label=LABELS, label2id={name: number for number, name in LABELS.items()}
)
config = LoraConfig(
    task_type=TaskType.SEQ_CLS,
    r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    target_modules=["query", "value"],
)
model = get_peft_model(model, config)
model.print_trainable_parameters()


def accuracy(prediction):
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((chosen == prediction.label_ids).mean())}


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="reviews",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=1,
        learning_rate=5e-3,
        num_train_epochs=3,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
    ),
    train_dataset=encoded["train"],
    eval_dataset=encoded["test"],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=accuracy,
)
trainer.train()
print("best:", trainer.state.best_model_checkpoint, trainer.evaluate()["eval_accuracy"])
model.save_pretrained("adapter")

opened = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=2, id2label=LABELS)
judge = pipeline("text-classification", model=opened, tokenizer=tokenizer)
for row in reviews["test"]:
    verdict = judge(row["text"])[0]
    print(verdict["label"], f"{verdict['score']:.4f}", row["text"])
