"""Chinese instructions with a soft prompt that starts as a sentence: train, save, open, answer."""

from datasets import load_from_disk
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    pipeline,
)

BASE = "bloom-1b4-zh"
MAX_LENGTH = 256

rows = load_from_disk("alpaca_zh")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    question = f"Human: {row['instruction']}\n{row['input']}".strip() + "\n\nAssistant: "
    asked = tokenizer(question)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token)["input_ids"]
    ids = (asked + answer)[:MAX_LENGTH]
    labels = ([-100] * len(asked) + answer)[:MAX_LENGTH]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


encoded = rows.map(encode, remove_columns=rows.column_names)

model = AutoModelForCausalLM.from_pretrained(BASE)
text = "下面是一段人与智能助手的对话。"
config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM,
    prompt_tuning_init=PromptTuningInit.TEXT,
    prompt_tuning_init_text=text,
    num_virtual_tokens=len(tokenizer(text)["input_ids"]),
    tokenizer_name_or_path=BASE,
)
model = get_peft_model(model, config)
model.print_trainable_parameters()

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="chatbot",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        learning_rate=0.01,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="epoch",
        report_to="none",
    ),
    train_dataset=encoded,
    data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
)
trainer.train()
model.save_pretrained("adapter")

base = AutoModelForCausalLM.from_pretrained(BASE)
chatbot = PeftModel.from_pretrained(base, "chatbot/checkpoint-4")
question = "Human: 考试有哪些技巧？\n\nAssistant: "
inputs = tokenizer(question, return_tensors="pt").to(chatbot.device)
answer = chatbot.generate(**inputs, max_new_tokens=12, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))

ask = pipeline("text-generation", model=chatbot, tokenizer=tokenizer)
print(ask(question, max_new_tokens=12, do_sample=False)[0]["generated_text"])
