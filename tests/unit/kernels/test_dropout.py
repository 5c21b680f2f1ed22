"""Dropout with masks of one bit per element, alone and inside the fused layers."""

import math
from importlib import import_module

import pytest
import torch
from random_tensors import random_double
from references import assert_close
from tiny import perturb, random_token_ids, tiny_model
from torch.nn import functional as F

from peftly import AdapterConfig, DoRA, LoRA, attach, trainable_parameters, use_adapters
from peftly.injection.modes import training_mode
from peftly.kernels.dropout import draw_mask, drop, dropout, keep_probability
from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.methods.adapter import ACTIVATIONS, add_bottleneck, bottleneck
from peftly.methods.dora import dora_scale

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
RATES = [0.0, 1e-7, 0.05, 0.1, 0.5, 0.75, 0.999, 1 - 1e-9]
CONFIGS = {
    "lora": LoRA(rank=3, dropout=0.4),
    "dora": DoRA(rank=3, dropout=0.4),
    "adapter": AdapterConfig(bottleneck_dim=3, dropout=0.4, activation="gelu"),
    "parallel": AdapterConfig(bottleneck_dim=3, dropout=0.4, placement="parallel"),
}


def random_mask(x, keep):
    return drop(torch.ones_like(x), draw_mask(x, keep))


@pytest.mark.parametrize("rate", RATES)
def test_the_probability_is_the_one_asked_for(rate):
    """Five standard deviations of a million draws: a wrong binary digit of `keep`, up to the tenth, is detected."""
    keep, x = keep_probability(rate), torch.empty(1000, 1001)
    assert abs(keep - (1 - rate)) <= (2**-17 if rate < 1 - 2**-17 else 2**-16)
    torch.manual_seed(0)
    share = random_mask(x, keep).double().mean().item()
    assert abs(share - keep) <= 5 * math.sqrt(keep * (1 - keep) / x.numel())


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    x = torch.empty(512, 1024)
    keep = keep_probability(0.3)
    mask = random_mask(x, keep).double() - keep
    for shift in (1, 2, 8, 16, 32, 64, 1024, x.numel() // 32, x.numel() // 64):
        pairs = (mask.flatten() * mask.flatten().roll(shift)).mean() / (keep * (1 - keep))
        assert abs(pairs) <= 5 / math.sqrt(x.numel()), f"elements {shift} apart"
    assert mask.mean(0).abs().max() <= 5.5 * math.sqrt(keep * (1 - keep) / 512)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (63,), (3, 5, 7), (64, 4)])
def test_the_generator_decides_the_mask(dtype, shape):
    x = torch.empty(shape, dtype=dtype)
    torch.manual_seed(7)
    first, state = random_mask(x, 0.5), torch.get_rng_state()
    second = random_mask(x, 0.5)
    torch.manual_seed(7)
    assert torch.equal(random_mask(x, 0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(random_mask(x, 0.5), second)
    assert first.dtype == dtype
    assert first.shape == shape
    if x.numel() > 60:
        assert not torch.equal(first, second), "every draw is a new mask"


@pytest.mark.parametrize("dtype", FLOATS)
def test_dropout_equals_that_of_torch_with_the_same_mask(dtype):
    x = torch.randn(4, 6, 5, dtype=dtype).transpose(0, 1).requires_grad_()
    seed = torch.randn(6, 4, 5, dtype=dtype)
    torch.manual_seed(1)
    factor = random_mask(x, keep_probability(0.4)) / keep_probability(0.4)
    torch.manual_seed(1)
    output = dropout(x, 0.4, training=True)
    torch.testing.assert_close(output, x * factor)
    torch.testing.assert_close(torch.autograd.grad(output, x, seed)[0], seed * factor)
    assert dropout(x, 0.4, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_dropped_elements_are_0_even_if_they_were_infinite():
    x = torch.tensor([float("inf"), float("nan")])
    assert torch.equal(drop(x, torch.zeros(1, dtype=torch.int64)), torch.zeros(2))


def test_a_mask_takes_one_bit_per_element():
    mask = draw_mask(torch.empty(100, 64), keep_probability(0.1))
    assert mask.untyped_storage().nbytes() == 100 * 64 / 8


def gradients(output, inputs, seed):
    return [output, *torch.autograd.grad(output, inputs, seed)]


_dropout = import_module("peftly.kernels.dropout")


@pytest.fixture(params=["bits", "booleans"])
def mask_of(request, monkeypatch):
    """Return a function that draws the mask of the next layer, as a CPU stores it or as other devices do."""
    if request.param == "booleans":
        monkeypatch.setattr(_dropout, "draw_mask", as_booleans)
        for module in ("peftly.kernels.low_rank_linear", "peftly.methods.adapter"):
            monkeypatch.setattr(import_module(module), "draw_mask", as_booleans)

    def factor(x, rate):
        state = torch.get_rng_state()
        keep = keep_probability(rate)
        mask = drop(torch.ones_like(x), _dropout.draw_mask(x, keep)) / keep
        torch.set_rng_state(state)
        return mask.detach()

    return factor


def as_booleans(x, keep):
    return torch.empty(x.shape, dtype=torch.bool).bernoulli_(keep)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_low_rank_layer_equals_the_formula_given_the_mask(shape, scaled, bias, mask_of):
    x, a, b, m = (
        random_double(*shape),
        random_double(4, 6, seed=1),
        random_double(7, 4, seed=2),
        random_double(7, seed=5),
    )
    weight, offset = random_double(7, 6, seed=3).detach(), random_double(7, seed=4) if bias else None
    # One scale for each side, because each graph is freed by its own backward pass.
    scale, other = (dora_scale(weight, a, b, 0.7, m) if scaled else None for _ in range(2))
    factor = mask_of(x, 0.4)
    fused = low_rank_linear(x, weight, offset, a, b, 0.7, scale=scale, dropout=0.4)
    plain = F.linear(x, weight) + 0.7 * F.linear(F.linear(x * factor, a), b)
    plain = (plain if other is None else other * plain) + (0 if offset is None else offset)
    inputs = (x, a, b, *([m] if scaled else []), *([offset] if bias else []))
    seed = torch.randn_like(plain)
    for ours, theirs in zip(gradients(fused, inputs, seed), gradients(plain, inputs, seed), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_bottleneck_equals_the_formula_given_the_mask(activation, rate, parallel, mask_of):
    h, output = random_double(2, 5, 6), random_double(2, 5, 6, seed=9)
    weights = (
        random_double(4, 6, seed=1),
        random_double(4, seed=2),
        random_double(6, 4, seed=3),
        random_double(6, seed=4),
    )
    function = ACTIVATIONS[activation]
    factor = mask_of(h, rate) if rate else 1
    fused = add_bottleneck(output if parallel else None, h, weights, function, 1.7, probability=rate)
    plain = (output if parallel else h) + 1.7 * factor * bottleneck(h, *weights, function)
    inputs = (h, *weights, *([output] if parallel else []))
    seed = torch.randn_like(plain)
    for ours, theirs in zip(gradients(fused, inputs, seed), gradients(plain, inputs, seed), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_bottleneck_saves_its_input_and_small_tensors(rate):
    h = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    weights = [torch.randn(*shape, requires_grad=True) for shape in ((4, 32), (4,), (32, 4), (32,))]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        add_bottleneck(None, h, weights, F.relu, 1.0, probability=rate)
    others = [t for t in saved if t.data_ptr() != h.data_ptr()]
    assert sum(t.nbytes for t in others) <= 2 * (64 * 4 + 2 * 4 * 32 + 4 + 32) + (64 * 32 / 8 if rate else 0)


def adapted(case, **changes):
    model = tiny_model("llama")
    attach(model, CONFIGS[case].model_copy(update=changes))
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    perturb(trainable_parameters(model).values())
    return model


def loss_and_gradients(model, seed=5):
    ids = torch.tensor(random_token_ids([9, 9]))
    if seed is not None:
        torch.manual_seed(seed)
    loss = model(ids, labels=ids, use_cache=False).loss
    gradients = torch.autograd.grad(loss, list(trainable_parameters(model).values()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("case", CONFIGS)
def test_checkpointed_blocks_draw_the_same_masks_again(case):
    model = adapted(case)
    with training_mode(model):
        expected, different = loss_and_gradients(model), loss_and_gradients(model, seed=6)
    with training_mode(model, gradient_checkpointing=True):
        found = loss_and_gradients(model)
    assert expected[0] != different[0]
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_restored_generator_continues_with_the_same_masks(case):
    model = adapted(case)
    with training_mode(model):
        first, state = loss_and_gradients(model), torch.get_rng_state()
        second = loss_and_gradients(model, seed=None)
        loss_and_gradients(model, seed=None)
        torch.set_rng_state(state)
        again = loss_and_gradients(model, seed=None)
    assert first[0] != second[0]
    assert all(torch.equal(a, b) for a, b in zip(again, second, strict=True))


@pytest.mark.parametrize("case", CONFIGS)
def test_the_general_path_does_the_same(case, monkeypatch):
    """A layer whose forward was replaced takes the general path and draws the same masks from the same generator."""
    model = adapted(case)
    with training_mode(model):
        expected = loss_and_gradients(model)
        for module in ("lora", "dora"):
            monkeypatch.setattr(import_module(f"peftly.methods.{module}"), "fusible_weight", lambda *_: None)
        monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: True)
        monkeypatch.setattr("peftly.methods.adapter.add_bottleneck", None)
        found = loss_and_gradients(model)
    assert_close(found[0], expected[0], 1e-12)
    assert_close(found[1], expected[1], 1e-10)


@pytest.mark.parametrize("case", CONFIGS)
def test_nothing_is_dropped_in_evaluation(case):
    model, without = adapted(case).eval(), adapted(case, dropout=0.0).eval()
    assert torch.equal(loss_and_gradients(model)[0], loss_and_gradients(without)[0])
    with training_mode(without):
        expected = loss_and_gradients(without)
    assert torch.equal(loss_and_gradients(model)[1], expected[1])


@pytest.mark.parametrize("case", CONFIGS)
def test_every_layer_draws_its_own_mask(case, monkeypatch):
    drawn = []

    def draw(x, keep):
        drawn.append(draw_mask(x, keep))
        return drawn[-1]

    for module in ("peftly.kernels.low_rank_linear", "peftly.methods.adapter"):
        monkeypatch.setattr(import_module(module), "draw_mask", draw)
    model = adapted(case)
    with training_mode(model):
        loss_and_gradients(model)
    assert len(drawn) == {"lora": 14, "dora": 14, "adapter": 4, "parallel": 2}[case]
    assert len({tuple(mask.tolist()) for mask in drawn}) == len(drawn)


@pytest.mark.parametrize("case", CONFIGS)
def test_batch_elements_with_other_adapters_have_no_dropout(case):
    model = adapted(case)
    attach(model, CONFIGS[case].model_copy(update={"dropout": 0.0}), name="other", seed=3)
    perturb([value for name, value in trainable_parameters(model).items() if ".other." in name], seed=4)
    ids = torch.tensor(random_token_ids([9, 9, 9]))
    with torch.no_grad(), training_mode(model):
        with use_adapters(model, adapters=["default", "other", None]):
            mixed, again = model(ids).logits, model(ids).logits
        for index, name in ((1, ["other"]), (2, [])):
            with use_adapters(model, *name):
                assert_close(mixed[index], model(ids[index : index + 1]).logits[0], 1e-12)
    assert not torch.equal(mixed[0], again[0])
    assert_close(again[1:], mixed[1:], 1e-12)
