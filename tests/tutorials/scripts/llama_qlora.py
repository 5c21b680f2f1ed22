"""QLoRA of Llama-2 in transformers' Trainer, and the weights merged into the base for use without an adapter."""

import torch
from datasets import load_from_disk
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

BASE = "llama-2-7b"

quotes = load_from_disk("quotes")["train"]
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.pad_token = tokenizer.eos_token
encoded = quotes.map(lambda row: tokenizer(f"{row['quote']} ({row['author']})"), remove_columns=quotes.column_names)

four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
model = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=four_bits)
model.config.use_cache = False
model = prepare_model_for_kbit_training(model)
config = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    bias="none",
    task_type="CAUSAL_LM",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
model = get_peft_model(model, config)
model.print_trainable_parameters()

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="quotes-run",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        warmup_steps=1,
        max_steps=4,
        learning_rate=2e-3,
        logging_steps=1,
        optim="paged_adamw_8bit" if torch.cuda.is_available() else "adamw_torch",
        report_to="none",
    ),
    train_dataset=encoded,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
model.save_pretrained("adapter")
tokenizer.save_pretrained("adapter")

base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = PeftModel.from_pretrained(base, "adapter")
model.eval()
inputs = tokenizer("Rain is", return_tensors="pt")
with torch.no_grad():
    adapted_logits = model(**inputs).logits

merged = model.merge_and_unload()
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")

model = AutoModelForCausalLM.from_pretrained("merged")
with torch.no_grad():
    merged_logits = model(**inputs).logits
print("merged:", torch.allclose(merged_logits, adapted_logits, atol=1e-4))
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True))
