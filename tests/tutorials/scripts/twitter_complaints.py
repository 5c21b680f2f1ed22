"""Complaints on Twitter with a soft prompt, in a loop of our own: the perplexity of both halves after every epoch."""

import torch
from datasets import load_from_disk
from peft import PeftConfig, PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    default_data_collator,
    get_linear_schedule_with_warmup,
)

BASE = "bloomz-560m"
TEXT = "Classify if the tweet is a complaint or not:"
MAX_LENGTH = 64
EPOCHS = 3

tweets = load_from_disk("twitter_complaints")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    question = tokenizer(f"Tweet text : {row['Tweet text']} Label : ")["input_ids"]
    answer = [*tokenizer(row["text_label"])["input_ids"], tokenizer.eos_token_id]
    room = MAX_LENGTH - len(question) - len(answer)
    return {
        "input_ids": [tokenizer.pad_token_id] * room + question + answer,
        "attention_mask": [0] * room + [1] * (len(question) + len(answer)),
        "labels": [-100] * (room + len(question)) + answer,
    }


encoded = tweets.map(encode, remove_columns=tweets["train"].column_names)
train_batches = DataLoader(encoded["train"], batch_size=4, shuffle=True, collate_fn=default_data_collator)
test_batches = DataLoader(encoded["test"], batch_size=4, collate_fn=default_data_collator)

config = PromptTuningConfig(
    task_type=TaskType.CAUSAL_LM,
    prompt_tuning_init=PromptTuningInit.TEXT,
    num_virtual_tokens=8,
    prompt_tuning_init_text=TEXT,
    tokenizer_name_or_path=BASE,
)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
model.print_trainable_parameters()

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
steps = EPOCHS * len(train_batches)
scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)

device = "cuda" if torch.cuda.is_available() else "cpu"
model = model.to(device)
losses = []
for epoch in range(EPOCHS):
    model.train()
    total = 0.0
    for batch in train_batches:
        loss = model(**{name: values.to(device) for name, values in batch.items()}).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total += loss.item()

    model.eval()
    held_out = 0.0
    for batch in test_batches:
        with torch.no_grad():
            held_out += model(**{name: values.to(device) for name, values in batch.items()}).loss.item()

    losses += [total / len(train_batches), held_out / len(test_batches)]
    train_perplexity, test_perplexity = (torch.tensor(loss).exp().item() for loss in losses[-2:])
    print(f"{epoch=} {train_perplexity=:.1f} {test_perplexity=:.1f}")

model.save_pretrained("adapter")

config = PeftConfig.from_pretrained("adapter")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path), "adapter")
model.eval()
for row in tweets["test"]:
    inputs = tokenizer(f"Tweet text : {row['Tweet text']} Label : ", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False
        )
    print(row["Tweet text"], "->", tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
