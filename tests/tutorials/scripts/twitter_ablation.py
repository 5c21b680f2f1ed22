"""Complaints on Twitter: how the length and the start of a soft prompt change the loss of held-out tweets."""

import torch
from datasets import load_from_disk
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

BASE = "bloomz-560m"
TEXT = "Classify if the tweet is a complaint or not:"

tweets = load_from_disk("twitter_complaints")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    question = tokenizer(f"Tweet text : {row['Tweet text']} Label : ")["input_ids"]
    answer = [*tokenizer(row["text_label"])["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [-100] * len(question) + answer}


encoded = tweets.map(encode, remove_columns=tweets["train"].column_names)
collate = DataCollatorForSeq2Seq(tokenizer)


def held_out_loss(config):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    trainable, total = model.get_nb_trainable_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    model.train()
    for batch in DataLoader(encoded["train"], batch_size=2, collate_fn=collate):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        losses = [model(**batch).loss.item() for batch in DataLoader(encoded["test"], collate_fn=collate)]
    return trainable, total, sum(losses) / len(losses)


losses = []
for length in (1, 5, 20):
    for init in (PromptTuningInit.RANDOM, PromptTuningInit.TEXT):
        text = {"prompt_tuning_init_text": TEXT, "tokenizer_name_or_path": BASE} if init == "TEXT" else {}
        config = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM, num_virtual_tokens=length, prompt_tuning_init=init, **text
        )
        trainable, total, loss = held_out_loss(config)
        losses.append(loss)
        print(f"{length:2d} {init.value:6} {trainable:,} of {total:,} loss {loss:.4f}")
