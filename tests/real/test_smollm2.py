"""A real base: smollm2-135m in fp32, where rounding adds up over 30 blocks, so that the bounds are relative."""

import pytest
import torch
from references import of_each_kind
from tiny import perturb

from peftly import (
    IA3,
    AdapterConfig,
    DoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    attach,
    detach,
    load_base,
    trainable_parameters,
    use_adapters,
)

TEXTS = [
    "Where is my parcel?",
    "The app logged me out for the third time today and the help page is a picture of a help page.",
    "thanks for the quick reply, all sorted now",
]
CONFIGS = {
    "prompt_tuning": PromptTuning(num_virtual_tokens=8, init_text="Is this tweet a complaint or not?"),
    "p_tuning": PTuning(num_virtual_tokens=5, encoder="lstm", encoder_dim=64),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=6, init_text="Is this tweet a complaint or not?"),
    "adapter": AdapterConfig(placement="pfeiffer"),
    "lora": LoRA(rank=8),
    "dora": DoRA(rank=4, target_modules=("q_proj", "down_proj")),
    "ia3": IA3(),
}


@pytest.fixture(scope="module")
def base():
    return load_base("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def before(base):
    return {name: value.clone() for name, value in base.model.state_dict().items()}


@pytest.fixture(scope="class", params=of_each_kind(CONFIGS))
def adapted(base, before, request):
    """The base with one adapter; afterwards its weights must be what they were."""
    model, tokenizer = base
    attach(model, CONFIGS[request.param], tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.02)
    yield model, tokenizer
    detach(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def loss_and_gradients(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    counted = (mask[:, 1:] * mask[:, :-1]).bool()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted], reduction="sum")
    gradients = torch.autograd.grad(loss, list(trainable_parameters(model).values()))
    return logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def difference(actual, expected):
    return float((actual - expected).norm() / expected.norm())


class TestOneAdapter:
    def test_a_batch_equals_its_texts(self, adapted):
        model, tokenizer = adapted
        singles = [loss_and_gradients(model, tokenizer(text, return_tensors="pt")) for text in TEXTS]
        for side in ("left", "right"):
            batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
            logits, gradients = loss_and_gradients(model, batch)
            for found, mask, (single, _) in zip(logits, batch["attention_mask"], singles, strict=True):
                assert difference(found[mask.bool()], single[0]) <= 1e-5
            assert difference(gradients, sum(gradient for _, gradient in singles)) <= 2e-4

    def test_a_batch_generates_the_same_as_its_texts(self, adapted):
        model, tokenizer = adapted
        options = {"max_new_tokens": 4, "do_sample": False}
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
        together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        for found, text in zip(together, TEXTS, strict=True):
            single = tokenizer(text, return_tensors="pt")
            alone = model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
            assert found[: len(alone)].tolist() == alone.tolist()


def test_one_batch_with_an_adapter_of_every_method(base):
    model, tokenizer = base
    for name, config in CONFIGS.items():
        attach(model, config, name=name, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.02)
    adapters = [*CONFIGS, None, ("prompt_tuning", "lora")]
    texts = [TEXTS[index % 3] for index in range(len(adapters))]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        with use_adapters(model, adapters=adapters):
            together = model(**batch).logits
        for text, names, found, mask in zip(texts, adapters, together, batch["attention_mask"], strict=True):
            with use_adapters(model, *([names] if isinstance(names, str) else names or ())):
                alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
            assert difference(found[mask.bool()], alone) <= 2e-5
    detach(model)
