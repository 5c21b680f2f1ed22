"""QLoRA of Llama-2 in TRL's SFTTrainer."""

import torch
from datasets import load_from_disk
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

BASE = "llama-2-7b"

quotes = load_from_disk("quotes")["train"].map(lambda row: {"text": f"{row['quote']} ({row['author']})"})
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.pad_token = tokenizer.eos_token
tokenizer.padding_side = "right"

four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=four_bits)
model = prepare_model_for_kbit_training(model)
config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules="all-linear")
model = get_peft_model(model, config)
model.print_trainable_parameters()

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir="quotes-sft",
        dataset_text_field="text",
        max_length=128,
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=2e-3,
        logging_steps=1,
        bf16=False,
        report_to="none",
    ),
    train_dataset=quotes.select_columns(["text"]),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model("adapter")

model = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype=torch.float32)
model = model.merge_and_unload()
inputs = tokenizer("Count twice", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True))
model.save_pretrained("merged")
