"""`transformers.pipeline` on adapted models of each task: what the model computes, and the base with adapters off."""

import pytest
import torch
import transformers as tf
from references import DEFAULTS
from tiny import perturb

from peftly import METHODS, attach, set_adapters, trainable_parameters, use_adapters

TEXTS = ["late again and great service", "thanks"]


def opened(folder, auto, method, **settings):
    torch.manual_seed(0)
    model = auto.from_pretrained(folder, **settings).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values(), scale=0.5)
    return model, tokenizer


def inputs_of(tokenizer, text):
    return tokenizer(text, return_tensors="pt")


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning"])
def test_text_classification(method, task_base):
    model, tokenizer = opened(task_base("bert"), tf.AutoModelForSequenceClassification, method, num_labels=3)
    classify = tf.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for text, found in zip(TEXTS, classify(TEXTS), strict=True):
        with torch.no_grad():
            expected = model(**inputs_of(tokenizer, text)).logits[0].softmax(-1)
        scores = {entry["label"]: entry["score"] for entry in found}
        assert [scores[f"LABEL_{index}"] for index in range(3)] == pytest.approx(expected.tolist(), rel=1e-5)
    with use_adapters(model):
        assert classify(TEXTS) != classify(TEXTS[::-1])
        off = classify(TEXTS[0])
    set_adapters(model)
    assert classify(TEXTS[0]) == off


@pytest.mark.parametrize("method", ["lora", "adapter", "prompt_tuning"])
def test_feature_extraction(method, task_base):
    model, tokenizer = opened(task_base("bert"), tf.AutoModel, method)
    extract = tf.pipeline("feature-extraction", model=model, tokenizer=tokenizer, return_tensors=True)
    with torch.no_grad():
        expected = model(**inputs_of(tokenizer, TEXTS[0])).last_hidden_state
    found = extract(TEXTS[0])
    assert found.shape == expected.shape, "the text only"
    torch.testing.assert_close(found, expected)
    with use_adapters(model):
        assert not torch.allclose(extract(TEXTS[0]), expected)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_fill_mask(method, task_base):
    model, tokenizer = opened(task_base("bert"), tf.AutoModelForMaskedLM, method)
    fill = tf.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    text = f"late again {tokenizer.mask_token} service"
    inputs = inputs_of(tokenizer, text)
    with torch.no_grad():
        logits = model(**inputs).logits[0, inputs["input_ids"][0] == tokenizer.mask_token_id][0]
    expected = logits.softmax(-1).topk(3)
    found = fill(text)
    assert [entry["token"] for entry in found] == expected.indices.tolist()
    assert [entry["score"] for entry in found] == pytest.approx(expected.values.tolist(), rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
def test_text_generation(method, tiny_llama_folder):
    model, tokenizer = opened(tiny_llama_folder, tf.AutoModelForCausalLM, method)
    generate = tf.pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False}
    found = generate(TEXTS[0], return_full_text=False, **options)[0]["generated_text"]
    inputs = inputs_of(tokenizer, TEXTS[0])
    tokens = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert found == tokenizer.decode(tokens, skip_special_tokens=True)
    with use_adapters(model):
        assert generate(TEXTS[0], return_full_text=False, **options)[0]["generated_text"] != found
