"""Cached functions of layers: LoRA of all batch elements in one product, and DoRA with its scale."""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
from references import assert_close
from tiny import perturb, random_token_ids, tiny_model

from peftly import DoRA, LoRA, attach, cache_adapter_tensors, detach, trainable_parameters, use_adapters
from peftly.injection.adapted_forward import SHORT_CALL_TOKENS
from peftly.injection.modes import evaluation_mode
from peftly.kernels import batched_lora as _stacked

LORA = import_module("peftly.methods.lora")
DORA = import_module("peftly.methods.dora")

CONFIGS = {
    "plain": LoRA(rank=3, alpha=5),
    "pattern": LoRA(rank=2, alpha=7, rslora=True, rank_pattern={"0.*": 5}, alpha_pattern={"1.*": 3.0}),
    "pissa": LoRA(rank=2, init="pissa"),
    "dropped": LoRA(rank=4, dropout=0.5),
}
SOME = {
    "llama": ("q_proj", "down_proj"),
    "gpt2": ("c_attn",),
    "t5": ("q", "wo"),
}
ADAPTERS = ["plain", None, ("plain", "some"), "pattern", ("some", "pissa"), "dropped", "plain", "some"]


def with_loras(architecture, dtype=torch.float64):
    """Return a model with adapters of several ranks and scalings, one of which changes some layers only."""
    model = tiny_model(architecture, dtype, task="seq2seq_lm" if architecture == "t5" else "causal_lm")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        attach(model, config, name=name, seed=seed)
    attach(model, LoRA(rank=1, target_modules=SOME[architecture]), name="some", seed=9)
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
    return model


def logits_of(model, adapters, ids, block=cache_adapter_tensors):
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad(), use_adapters(model, adapters=adapters), block():
        return model(ids, **inputs).logits


def alone(model, adapters, ids):
    """Return the logits of each batch element alone, without cached tensors."""
    return torch.cat(
        [logits_of(model, [choice], text[None], nullcontext) for choice, text in zip(adapters, ids, strict=True)]
    )


def texts(count=8, length=5):
    return torch.tensor(random_token_ids([length] * count))


@pytest.fixture
def stacks(monkeypatch):
    """The layers whose factors were stacked, each as often as they were."""
    made, original = [], _stacked.stack_factors

    def counting(changes, *others, **more):
        stack = original(changes, *others, **more)
        if stack is not None:
            made.append(changes)
        return stack

    monkeypatch.setattr(LORA, "stack_factors", counting)
    return made


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("architecture", SOME)
def test_each_batch_element_has_the_logits_that_it_has_alone(architecture, dtype, bound, stacks):
    model, ids = with_loras(architecture, dtype), texts()
    found = logits_of(model, ADAPTERS, ids)
    assert stacks, "the batch elements were computed in groups"
    assert_close(found, alone(model, ADAPTERS, ids), bound)
    # `generate` repeats each batch element for beams.
    assert_close(logits_of(model, ADAPTERS, ids.repeat_interleave(2, 0)), found.repeat_interleave(2, 0), bound)


@pytest.mark.parametrize("context", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_other_modes_of_torch(context, stacks):
    model, ids = with_loras("llama", torch.float32), texts()
    with context():
        found = logits_of(model, ADAPTERS, ids)
        expected = alone(model, ADAPTERS, ids)
    assert stacks
    assert_close(found, expected, 3e-2)


def test_outside_a_block_nothing_is_cached(stacks):
    model, ids = with_loras("llama"), texts(2)
    parameter = model.model.layers[0].self_attn.q_proj.peftly["plain"].lora_b
    with torch.inference_mode(), use_adapters(model, adapters=["plain", "some"]):
        before = model(ids).logits
        parameter.mul_(-3)
        found = model(ids).logits
    assert not stacks
    assert not torch.equal(found[0], before[0])
    assert_close(found, alone(model, ["plain", "some"], ids), 1e-6)


def test_a_layer_is_run_once_and_its_factors_are_stacked_once(stacks):
    model, ids, calls = tiny_model("llama"), texts(2), []
    layer = model.model.layers[0].mlp.up_proj
    original = layer.forward
    layer.forward = lambda x: calls.append(x.shape[0]) or original(x)
    for name in ("a", "b"):
        attach(model, LoRA(rank=2, target_modules=("up_proj", "down_proj")), name=name)
    with use_adapters(model, adapters=["a", "b"]), evaluation_mode(model):
        for _ in range(3):
            with cache_adapter_tensors():  # shares the tensors of the outer block
                model(ids)
    assert calls == [2, 2, 2]
    assert len(stacks) == 2 * len(model.model.layers)


def test_batches_with_the_same_adapters_in_other_orders_share_factors(stacks):
    model, ids = with_loras("llama"), texts(3)
    batches = [["plain", "some", None], ["some", "some", "plain"], [None, "plain", "some"]]
    expected = [alone(model, adapters, ids) for adapters in batches]
    with evaluation_mode(model):
        for adapters, wanted in zip(batches, expected, strict=True):
            with use_adapters(model, adapters=adapters):
                assert_close(model(ids).logits, wanted, 1e-6)
    layers = sum(hasattr(module, "peftly") for module in model.modules())
    assert len(stacks) == layers


def test_generate_stacks_the_factors_once(stacks):
    model, ids = tiny_model("llama"), texts(3)
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    found = model.generate(ids, max_new_tokens=4, do_sample=False)
    layers = len(stacks)
    assert layers == sum(hasattr(module, "peftly") for module in model.modules())
    perturb(trainable_parameters(model).values())
    other = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert len(stacks) == 2 * layers
    assert not torch.equal(found, other)


def test_the_scale_of_dora_is_computed_once(monkeypatch):
    model, ids = tiny_model("llama", torch.float64), texts(2)
    attach(model, DoRA(rank=2))
    perturb(trainable_parameters(model).values())
    expected, counted, original = alone(model, ["default"] * 2, ids), [], DORA.dora_scale
    monkeypatch.setattr(DORA, "dora_scale", lambda *given: counted.append(1) or original(*given))
    with evaluation_mode(model):
        for _ in range(3):
            assert_close(model(ids).logits, expected, 1e-6)
    assert len(counted) == sum(hasattr(module, "peftly") for module in model.modules())


def _in_place(model, parameter):
    parameter.mul_(-3)


def _another_tensor(model, parameter):
    parameter.data = -3 * parameter.data


def _twice(model, parameter):
    for factor in (2, -2):  # the second may get the memory of the first one
        parameter.data = factor * parameter.data


def _one_more(model, parameter):
    parameter.mul_(-3)
    attach(model, LoRA(rank=2), name="new")


@pytest.mark.parametrize("change", [_in_place, _another_tensor, _twice, _one_more])
def test_changed_weights_are_seen_by_the_next_block(change):
    model, ids = with_loras("llama"), texts(2)
    parameter = model.model.layers[0].self_attn.q_proj.peftly["plain"].lora_b
    before = logits_of(model, ["plain", "some"], ids)
    with torch.no_grad():
        change(model, parameter)
    found = logits_of(model, ["plain", "some"], ids)
    assert_close(found, alone(model, ["plain", "some"], ids), 1e-6)
    assert not torch.equal(found[0], before[0])
    detach(model)


@pytest.mark.parametrize("factor", ["lora_a", "lora_b"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
def test_an_adapter_that_is_not_finite_affects_its_own_batch_elements_only(value, factor):
    model, ids = with_loras("llama", torch.float32), texts(3)
    adapters = ["plain", "some", None]
    expected = alone(model, adapters, ids)
    with torch.no_grad():
        getattr(model.model.layers[0].self_attn.q_proj.peftly["plain"], factor).fill_(value)
    assert_close(logits_of(model, adapters, ids)[1:], expected[1:], 1e-5)


def test_adapters_that_do_not_stack_are_computed_in_groups(stacks):
    model, ids = tiny_model("llama"), texts(3)
    attach(model, LoRA(rank=2), name="lora")
    attach(model, DoRA(rank=2), name="dora")
    attach(model, LoRA(rank=2, dropout=0.5), name="dropped")
    perturb(trainable_parameters(model).values())
    adapters = ["lora", "dora", None]
    assert_close(logits_of(model, adapters, ids), alone(model, adapters, ids), 1e-6)
    model.train()
    logits_of(model, ["lora", "dropped"], ids[:2])
    model.eval()
    with use_adapters(model, adapters=["lora", "dropped"]), cache_adapter_tensors():
        model(ids[:2]).logits.sum().backward()
    assert not stacks


@pytest.mark.parametrize(("rank", "calls"), [(1, [2]), (64, [1, 1])], ids=["small", "large"])
def test_long_calls_stack_factors_that_are_small_beside_the_layer(rank, calls):
    model, long, seen = tiny_model("llama", torch.float64), texts(2, SHORT_CALL_TOKENS // 2 + 1), []
    layer = model.model.layers[0].mlp.up_proj
    original = layer.forward
    layer.forward = lambda x: seen.append(x.shape[0]) or original(x)
    for seed, name in enumerate(("a", "b")):
        attach(model, LoRA(rank=rank), name=name, seed=seed)
    perturb(trainable_parameters(model).values())
    found = logits_of(model, ["a", "b"], long)
    assert seen == calls
    assert_close(found, alone(model, ["a", "b"], long), 1e-6)
