"""LoRA written with `torch.nn.utils.parametrize` has the outputs and gradients of peftly's, stacked and merged too."""

import copy

import pytest
import torch
from torch import nn

import peftly


@pytest.fixture
def scratch(example):
    threads = torch.get_num_threads()
    yield example("lora_parametrize")
    torch.set_num_threads(threads)


def pair(scratch, updates):
    """Return a network with stacked updates from scratch, the same with peftly's, and the factors of both."""
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10, bias=False), nn.Tanh(), nn.Linear(10, 4)
    ).double()
    mine, ours = copy.deepcopy(base), copy.deepcopy(base)
    theirs = {}
    for name, (rank, alpha) in updates.items():
        factors = scratch.add_lora(mine, rank, alpha)
        peftly.attach(ours, peftly.LoRA(rank=rank, alpha=alpha, target_modules=".*"), name=name)
        theirs |= {path.replace(".lora", f".peftly.{name}.lora"): factor for path, factor in factors.items()}
    our_factors = peftly.trainable_parameters(ours)
    with torch.no_grad():
        for name, parameter in our_factors.items():
            theirs[name].copy_(torch.randn_like(theirs[name]) * 0.3)
            parameter.data = theirs[name].detach().clone()
    return base, mine, ours, [theirs[name] for name in our_factors], list(our_factors.values())


@pytest.mark.parametrize("updates", [{"one": (2, 3)}, {"one": (2, 3), "two": (3, 1)}], ids=["alone", "stacked"])
def test_outputs_gradients_and_merged_weights_are_equal(scratch, updates):
    base, mine, ours, theirs, our_factors = pair(scratch, updates)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    found = {}
    for name, (model, factors) in {"mine": (mine, theirs), "ours": (ours, our_factors)}.items():
        output = model(x)
        gradients = torch.autograd.grad(output.square().sum(), [x, *factors])
        found[name] = [output.detach(), *gradients]
    for one, other in zip(found["mine"], found["ours"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.abs().max() > 1e-3  # nothing is equal because it is zero
    assert not torch.allclose(found["ours"][0], base(x))

    scratch.merge_lora(mine)
    peftly.merge(ours)
    merged = dict(mine.named_parameters())
    assert merged.keys() == dict(ours.named_parameters()).keys()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(merged[name], weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine(x), found["mine"][0], rtol=1e-12, atol=1e-12)


def test_the_script(scratch):
    found = scratch.main(steps=40)
    assert found["base: all digits"] > 0.9
    assert found["alone: all digits"] < found["mixed: all digits"]
    assert found["share of parameters trained"] < 0.01
    for name in ("alone", "mixed"):
        assert found[f"{name}: difference of the two versions"] < 1e-5
        assert found[f"{name}: difference of the two versions, merged"] < 1e-5
