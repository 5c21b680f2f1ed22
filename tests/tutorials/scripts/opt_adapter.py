"""A published LoRA adapter of OPT: its folder names the base, and a second text shows what it changed."""

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTER = "opt-350m-lora"

config = PeftConfig.from_pretrained(ADAPTER)
print(config.peft_type.value, config.task_type, config.base_model_name_or_path, config.r, sorted(config.target_modules))
base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
tokenizer = AutoTokenizer.from_pretrained(config.base_model_name_or_path)
inputs = tokenizer("Bread first", return_tensors="pt")

with torch.no_grad():
    before = base(**inputs).logits
    model = PeftModel.from_pretrained(base, ADAPTER)
    after = model(**inputs).logits
print("changed:", not torch.allclose(before, after))
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True))
