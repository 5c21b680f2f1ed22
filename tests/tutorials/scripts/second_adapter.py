"""Several LoRA adapters on one Bloom: add, choose, switch off, mix and delete."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "bloom-1b4-zh"

tokenizer = AutoTokenizer.from_pretrained(BASE)
inputs = tokenizer("Human: 你好！\n\nAssistant: ", return_tensors="pt")
batch = {**inputs, "labels": inputs["input_ids"]}


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model):
    with torch.no_grad():
        return model(**inputs).logits


base = AutoModelForCausalLM.from_pretrained(BASE)
base_logits = logits(base)
first = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["query_key_value"])
model = get_peft_model(base, first, adapter_name="polite")
losses = train(model)
second = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["query_key_value", "dense_h_to_4h"])
model.add_adapter("brief", second)
model.set_adapter("brief")
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
losses += train(model)
print(model.active_adapters, sorted(model.peft_config))

answers = {}
for name in ("polite", "brief"):
    model.set_adapter(name)
    answers[name] = logits(model)
with model.disable_adapter():
    answers["none"] = logits(model)
answers["again"] = logits(model)

model.add_weighted_adapter(["polite", "brief"], [0.7, 0.3], adapter_name="both", combination_type="cat")
model.set_adapter("both")
answers["both"] = logits(model)
model.save_pretrained("adapters", selected_adapters=["polite", "brief"])

model.delete_adapter("both")
model.set_adapter("polite")
print(model.active_adapters, sorted(model.peft_config))

opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "adapters/polite", adapter_name="polite")
opened.load_adapter("adapters/brief", adapter_name="brief")
for name in ("polite", "brief"):
    opened.set_adapter(name)
    print(name, torch.allclose(logits(opened), answers[name], atol=1e-5))
unloaded = model.unload()
print("unloaded", torch.allclose(logits(unloaded), base_logits, atol=1e-6), type(unloaded).__name__)
