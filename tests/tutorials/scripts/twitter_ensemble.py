"""Complaints on Twitter: five soft prompts that differ in their seed vote."""

from collections import Counter

import torch
from datasets import load_from_disk
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

BASE = "bloomz-560m"

tweets = load_from_disk("twitter_complaints")
tokenizer = AutoTokenizer.from_pretrained(BASE)


def encode(row):
    question = tokenizer(f"Tweet text : {row['Tweet text']} Label : ")["input_ids"]
    answer = [*tokenizer(row["text_label"])["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [-100] * len(question) + answer}


encoded = tweets.map(encode, remove_columns=tweets["train"].column_names)
collate = DataCollatorForSeq2Seq(tokenizer)
config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=8)

starts = []
for seed in range(5):
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    starts.append(model.get_prompt_embedding_to_save("default").detach().clone())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    model.train()
    for batch in DataLoader(encoded["train"], batch_size=4, shuffle=True, collate_fn=collate):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(f"prompt-{seed}")

base = AutoModelForCausalLM.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, "prompt-0", adapter_name="prompt-0")
for seed in range(1, 5):
    model.load_adapter(f"prompt-{seed}", adapter_name=f"prompt-{seed}")
model.eval()

votes = []
for row in tweets["test"]:
    inputs = tokenizer(f"Tweet text : {row['Tweet text']} Label : ", return_tensors="pt")
    answers = []
    for seed in range(5):
        model.set_adapter(f"prompt-{seed}")
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
    votes.append(Counter(answers).most_common(1)[0][0])
    print(row["Tweet text"], answers, "->", votes[-1])
