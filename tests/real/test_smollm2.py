"""Depth on a real base: smollm2-135m in fp32, where absolute bounds fail and relative ones must hold."""

import pytest
import torch
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


@pytest.fixture(params=CONFIGS)
def adapted(base, before, request):
    model, tokenizer = base
    attach(model, CONFIGS[request.param], tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.02)
    yield model, tokenizer
    model.zero_grad()
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


def test_a_batch_equals_its_rows(adapted):
    model, tokenizer = adapted
    rows = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    singles = [loss_and_gradients(model, row) for row in rows]
    for side in ("left", "right"):
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side=side)
        logits, gradients = loss_and_gradients(model, batch)
        for own, mask, (single, _) in zip(logits, batch["attention_mask"], singles, strict=True):
            assert difference(own[mask.bool()], single[0]) <= 1e-5
        assert difference(gradients, sum(gradient for _, gradient in singles)) <= 2e-4


def test_a_batch_generates_what_its_rows_generate(adapted):
    model, tokenizer = adapted
    options = {"max_new_tokens": 6, "do_sample": False}
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for own, text in zip(together, TEXTS, strict=True):
        row = tokenizer(text, return_tensors="pt")
        alone = model.generate(**row, **options)[0, row["input_ids"].shape[1] :]
        assert own[: len(alone)].tolist() == alone.tolist()


def test_one_batch_with_an_adapter_of_every_method(base):
    model, tokenizer = base
    for name, config in CONFIGS.items():
        attach(model, config, name=name, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.02)
    rows = [*CONFIGS, None, ("prompt_tuning", "lora")]
    texts = [TEXTS[place % 3] for place in range(len(rows))]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        with use_adapters(model, rows=rows):
            together = model(**batch).logits
        for place, row in enumerate(rows):
            with use_adapters(model, *([row] if isinstance(row, str) else row or ())):
                alone = model(**tokenizer(texts[place], return_tensors="pt")).logits[0]
            assert difference(together[place][batch["attention_mask"][place].bool()], alone) <= 2e-5
    detach(model)
