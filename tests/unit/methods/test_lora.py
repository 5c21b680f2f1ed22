"""Fused layer, scaling, dropout and targets of LoRA."""

import math

import pytest
import torch
from random_tensors import random_double
from tiny import tiny_model
from torch.nn import functional as F

from peftly import LoRA, attach
from peftly.injection.targets import find_targets, short_names
from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.methods.low_rank import lora_delta, lora_scaling


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_the_fused_layer_equals_the_formula(bias, shape):
    x, a, b = random_double(*shape), random_double(4, 6, seed=1), random_double(7, 4, seed=2)
    weight, offset = random_double(7, 6, seed=3).detach(), random_double(7, seed=4).detach() if bias else None
    fused = low_rank_linear(x, weight, offset, a, b, 0.7)
    plain = F.linear(x, weight, offset) + 0.7 * F.linear(F.linear(x, a), b)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused, F.linear(x, weight + lora_delta(a, b, 0.7), offset))
    seed = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(fused, (x, a, b), seed), torch.autograd.grad(plain, (x, a, b), seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_fused_layer_passes_gradcheck():
    weight = random_double(3, 4, seed=3).detach()
    assert torch.autograd.gradcheck(
        lambda x, a, b: low_rank_linear(x, weight, None, a, b, 1.3),
        (random_double(2, 4), random_double(2, 4, seed=1), random_double(3, 2)),
    )


def test_few_tensors_are_saved_for_the_backward_pass():
    """Only x, x Aᵀ and the factors are saved: no second copy of the activations, in any dtype."""
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(48, 32, dtype=torch.bfloat16)
    a, b = torch.randn(4, 32, requires_grad=True), torch.randn(48, 4, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linear(x, weight, None, a, b, 1.0)
    others = [t for t in saved if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())]
    assert sum(t.numel() for t in others) <= 64 * 4 + 4 * 32 + 48 * 4
    assert all(t.dtype == torch.bfloat16 for t in others)


def test_scaling():
    assert lora_scaling(16, 8, rslora=False) == 2
    assert lora_scaling(16, 8, rslora=True) == 16 / math.sqrt(8)


def test_dropout_is_on_the_update_only_and_off_in_eval():
    model = attach(tiny_model("llama"), LoRA(rank=4, dropout=0.5))
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.peftly["default"].lora_b.fill_(0.1)
        x = random_double(3, 32).detach()
        assert torch.equal(layer(x), layer(x))
        layer.train()
        assert not torch.equal(layer(x), layer(x))
        layer.peftly["default"].lora_b.zero_()
        assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_autocast_and_mixed_dtypes_take_the_plain_path():
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=4))
    ids = torch.tensor([[3, 4, 5]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if n.endswith("lora_b")]
    assert all(grad is not None and grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 14),
        (("q_proj", "v_proj"), 4),
        (("layers.0.self_attn.q_proj",), 1),
        (r"model\.layers\.1\..*_proj", 7),
        (("lm_head",), 1),
    ],
)
def test_targets(targets, count):
    model = tiny_model("llama")
    layers = find_targets(model, targets)
    assert len(layers) == count
    assert find_targets(model, short_names(model, list(layers))) == layers


def test_the_seed_decides_the_initial_factors_and_the_global_generator_is_not_used():
    state = torch.get_rng_state()
    starts = [
        attach(tiny_model("llama"), LoRA(rank=4), seed=seed).model.layers[0].mlp.up_proj.peftly["default"].lora_a
        for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_a_model_does_not_have(bias):
    with pytest.warns(UserWarning, match=f"bias='{bias}' trains no bias: these layers of the model have none"):
        attach(tiny_model("llama"), LoRA(bias=bias))
