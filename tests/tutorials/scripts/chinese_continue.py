"""Chinese instructions with LoRA: a training that stops after its first epoch goes on from its checkpoint."""

from datasets import load_from_disk
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

BASE = "bloom-1b4-zh"

rows = load_from_disk("alpaca_zh")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    question = f"Human: {row['instruction']}\n{row['input']}".strip() + "\n\nAssistant: "
    asked = tokenizer(question)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token)["input_ids"]
    return {"input_ids": asked + answer, "labels": [-100] * len(asked) + answer}


encoded = rows.map(encode, remove_columns=rows.column_names)
config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["query_key_value"])


def new_trainer(folder):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        learning_rate=0.01,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="epoch",
        report_to="none",
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    return Trainer(model=model, args=arguments, train_dataset=encoded, data_collator=collator)


unbroken = new_trainer("unbroken")
unbroken.train()

continued = new_trainer("continued")
continued.train(resume_from_checkpoint="unbroken/checkpoint-2")
continued.model.save_pretrained("adapter")
