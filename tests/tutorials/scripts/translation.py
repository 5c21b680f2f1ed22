"""Translation with mt0 and LoRA, in Seq2SeqTrainer."""

from datasets import load_from_disk
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

BASE = "mt0-large"

pairs = load_from_disk("translations")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    return tokenizer(f"Translate to French: {row['en']}", text_target=row["fr"], max_length=64, truncation=True)


encoded = pairs.map(encode, remove_columns=pairs["train"].column_names)
model = AutoModelForSeq2SeqLM.from_pretrained(BASE)
config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, inference_mode=False, r=8, lora_alpha=32, lora_dropout=0.0)
model = get_peft_model(model, config)
model.print_trainable_parameters()

trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments(
        output_dir="translator",
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-2,
        num_train_epochs=2,
        logging_steps=1,
        eval_strategy="epoch",
        predict_with_generate=True,
        generation_max_length=12,
        report_to="none",
    ),
    train_dataset=encoded["train"],
    eval_dataset=encoded["test"],
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    processing_class=tokenizer,
)
trainer.train()
guessed = trainer.predict(encoded["test"]).predictions
model.save_pretrained("adapter")

translator = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(BASE), "adapter")
inputs = tokenizer("Translate to French: the sea is open", return_tensors="pt")
print(tokenizer.decode(translator.generate(**inputs, max_new_tokens=10)[0], skip_special_tokens=True))
