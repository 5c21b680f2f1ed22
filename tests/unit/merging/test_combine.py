"""One adapter of several: exact side by side, or the best of a rank; and what cannot be weighted."""

import copy

import pytest
import torch
from references import assert_close
from tiny import perturb, tiny_model

from peftly import (
    DoRA,
    LoRA,
    PromptTuning,
    attach,
    attached,
    combine,
    merge,
    set_adapters,
    trainable_parameters,
    use_adapters,
)
from peftly.errors import MethodError
from peftly.merging.combine import best_approximation

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
WEIGHTS = {"a": 0.7, "b": 0.4, "c": -1.5}


def several(architecture="llama"):
    """Three of different layers, ranks and scalings, an embedding and PiSSA among them."""
    embedding = "transformer.wte" if architecture == "gpt2" else "embed_tokens"
    inner = "c_fc" if architecture == "gpt2" else "up_proj"
    model = tiny_model(architecture)
    attach(model, LoRA(rank=3, alpha=7, dropout=0.5), name="a", seed=1)
    attach(model, LoRA(rank=5, rslora=True, target_modules=(embedding, inner)), name="b", seed=2)
    attach(model, LoRA(rank=2, init="pissa", target_modules=(inner,), alpha_pattern={inner: 3.0}), name="c", seed=3)
    perturb(trainable_parameters(model).values())
    return in_double(model)


def in_double(model):
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:untied")
def test_linear_is_the_sum(architecture):
    model = several(architecture)
    expected = logits(merge(copy.deepcopy(model), weights=WEIGHTS))
    in_double(combine(model, WEIGHTS, name="both"))
    combined = copy.deepcopy(model)
    assert_close(logits(model), expected, 1e-6)  # a new adapter's factors are in fp32
    assert_close(logits(merge(combined, "both")), logits(model), 1e-10)
    assert attached(model)["both"].config.rank_pattern, "layers that have more or fewer of them"


def test_the_others_stay_off_beside_it():
    model = several()
    alone = {name: logits(set_adapters(model, name)) for name in WEIGHTS}
    set_adapters(model, "a", "c")
    combine(model, {"a": 1.0}, name="again")
    with use_adapters(model, "a", "c"):
        expected = logits(model)
    assert_close(logits(model), expected, 1e-6)
    for name in WEIGHTS:
        assert torch.equal(logits(set_adapters(model, name)), alone[name])


def test_svd_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    for out_features, in_features, inner in ((7, 12, 5), (12, 7, 9), (4, 30, 6), (30, 4, 6)):
        lora_a = torch.randn(inner, in_features, generator=generator, dtype=torch.double)
        lora_b = torch.randn(out_features, inner, generator=generator, dtype=torch.double)
        u, values, v = torch.linalg.svd(lora_b @ lora_a, full_matrices=False)
        for rank in (1, 3, 50):
            a, b = best_approximation(lora_a, lora_b, rank)
            assert len(a) == b.shape[1] == min(rank, inner, in_features, out_features)
            torch.testing.assert_close(b @ a, (u[:, :rank] * values[:rank]) @ v[:rank])
            torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_svd_of_enough_rank_is_exact():
    model = several()
    expected = logits(in_double(combine(copy.deepcopy(model), WEIGHTS, name="both")))
    enough = combine(copy.deepcopy(model), WEIGHTS, name="both", method="svd", rank=99)
    assert_close(logits(in_double(enough)), expected, 1e-6)
    combine(model, WEIGHTS, name="both", method="svd")
    assert {len(change.lora_a) for _, change in attached(model)["both"].targets().values()} == {3, 5}
    assert (logits(model) - expected).norm() > 1e-4 * expected.norm()


def test_what_is_no_sum_is_refused():
    model = tiny_model("gpt2")
    attach(model, LoRA(), name="fine")
    attach(model, DoRA(target_modules=("lm_head",)), name="dora")
    attach(model, PromptTuning(init="random"), name="prompt")
    attach(model, LoRA(target_modules=("c_attn",), bias="all"), name="biases")
    attach(model, LoRA(target_modules=("c_fc",), modules_to_save=("ln_f",)), name="saved")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for weights, message in (
        ({"fine": 1, "dora": 1}, "'dora': it is dora"),
        ({"prompt": 1}, "'prompt': it is prompt_tuning"),
        ({"biases": 1}, "'biases': it trains a copy in transformer"),
        ({"saved": 1}, r"'saved': it trains a copy in transformer\.ln_f"),
        ({"fine": float("nan")}, "weight of 'fine' is nan"),
        ({"other": 1}, "no adapter 'other'"),
        ({}, "names no adapter"),
    ):
        with pytest.raises(MethodError, match=message):
            combine(model, weights, name="both")
        with pytest.raises(MethodError, match=f"{message}|cannot be merged|is changed by|carries no"):
            merge(model, weights=weights)
    for method, rank in (("mean", None), ("linear", 3), ("svd", 0)):
        with pytest.raises(MethodError, match="method is linear, or svd"):
            combine(model, {"fine": 1}, name="both", method=method, rank=rank)
    with pytest.raises(MethodError, match="has an adapter 'dora' already"):
        combine(model, {"fine": 1}, name="dora")
    with pytest.raises(MethodError, match="not both"):
        merge(model, "fine", weights={"fine": 1})
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert list(attached(model)) == ["fine", "dora", "prompt", "biases", "saved"]


def choose_default(model):
    set_adapters(model, "a", "c")
    return logits(model), merge(model)


def choose_block(model):
    with use_adapters(model, "b"):
        return logits(model), merge(model)


def choose_combined(model):
    combine(model, WEIGHTS, name="both")
    in_double(model)
    return logits(model), merge(model)


def choose_lora_beside_dora(model):
    attach(model, DoRA(rank=2), name="other")
    set_adapters(model, "a")
    return logits(model), merge(model)


@pytest.mark.filterwarnings("ignore:untied")
@pytest.mark.parametrize("choose", [choose_default, choose_block, choose_combined, choose_lora_beside_dora])
def test_active_adapters_are_merged_and_the_others_are_detached(choose):
    with pytest.warns(UserWarning, match="detached without merging, because it is not active: .*set_adapters"):
        expected, model = choose(several())
    assert not attached(model)
    assert_close(logits(model), expected, 1e-6)


def test_without_an_active_adapter_there_is_nothing_to_merge():
    model = set_adapters(several())
    before = logits(model)
    with pytest.raises(MethodError, match=r"no adapter of this model is active.*set_adapters\(model, 'a', 'b', 'c'\)"):
        merge(model)
    with pytest.raises(MethodError, match="different adapters"), use_adapters(model, adapters=["a", None]):
        merge(model)
    assert list(attached(model)) == ["a", "b", "c"]
    assert torch.equal(logits(model), before)
