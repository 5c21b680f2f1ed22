"""Calls with the embeddings of texts in place of their ids (`inputs_embeds`): outputs and gradients are the same."""

import pytest
import torch
from references import assert_close
from tiny import padded, perturb, random_token_ids, tiny_model

from peftly import LoRA, PrefixTuning, PromptTuning, PTuning, attach, trainable_parameters, use_adapters

TEXTS = random_token_ids([5, 15, 9])
METHODS = {
    "lora": LoRA(rank=2),
    "prompt": PromptTuning(num_virtual_tokens=3, init="random"),
    "p_tuning": PTuning(num_virtual_tokens=2),
    "prefix": PrefixTuning(num_virtual_tokens=3),
}
MODELS = {
    **dict.fromkeys(["llama", "gpt2", "gemma3", "opt"], "causal_lm"),
    **dict.fromkeys(["bert", "roberta"], "sequence_classification"),
    **dict.fromkeys(["t5", "bart"], "seq2seq_lm"),
}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_have_the_outputs_and_gradients_of_their_ids(architecture, side):
    task = MODELS[architecture]
    model = tiny_model(architecture, task=task)
    for name, config in METHODS.items():
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values())
    ids, mask = padded(TEXTS, side)
    embeds = model.get_input_embeddings()(ids).detach()
    more = {"labels": ids} if task != "sequence_classification" else {"labels": torch.tensor([0, 1, 2])}
    for adapters in (["lora", "prompt", None], [("prompt", "p_tuning", "prefix")] * 3):
        found = []
        with use_adapters(model, adapters=adapters):
            for inputs in ({"input_ids": ids}, {"inputs_embeds": embeds}):
                output = model(**inputs, attention_mask=mask, **more)
                output.loss.backward()
                gradients = [p.grad.flatten() for p in trainable_parameters(model).values() if p.grad is not None]
                logits = output.logits[mask.bool()] if task == "causal_lm" else output.logits
                found.append((logits, torch.cat(gradients)))
                model.zero_grad()
        assert_close(found[1][0], found[0][0], 1e-6 if architecture in ("bert", "roberta", "t5") else 1e-10)
        assert_close(found[1][1], found[0][1], 1e-6)
