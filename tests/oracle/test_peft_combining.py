"""LoRA adapters that are combined and weighted, here and in PEFT."""

import copy

import peft
import pytest
import torch
from references import assert_close
from tiny import perturb, tiny_model

from peftly import LoRA, attach, combine, load_adapter, merge, save_adapter, set_adapters, trainable_parameters

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
CONFIGS = {
    "a": LoRA(rank=3, alpha=7, target_modules=("q_proj", "up_proj")),
    "b": LoRA(rank=5, alpha=4, rslora=True, target_modules=("up_proj", "down_proj"), rank_pattern={"down_proj": 2}),
}
WEIGHTS = {"a": 0.7, "b": -0.3}


def ours():
    model = tiny_model("llama", torch.float32)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        attach(model, config, name=name, seed=seed)
    perturb(trainable_parameters(model).values())
    return model


def theirs(model, folder):
    """Return a model of PEFT with the same adapters.

    PEFT weights the layers that both change only if the first adapter has them.
    """
    for name in CONFIGS:
        save_adapter(model, folder / name, name=name)
    base = tiny_model("llama", torch.float32)
    found = peft.PeftModel.from_pretrained(base, folder / "a", adapter_name="a")
    found.load_adapter(folder / "b", adapter_name="b")
    return found


@pytest.mark.parametrize(("method", "their_method"), [("linear", "cat"), ("svd", "svd")])
def test_equals_add_weighted_adapter(method, their_method, tmp_path):
    model = ours()
    other = theirs(model, tmp_path)
    weights, rank = {"a": 0.7, "b": 0.3}, None if method == "linear" else 4
    other.add_weighted_adapter(
        list(weights), list(weights.values()), "both", combination_type=their_method, svd_rank=rank
    )
    other.set_adapter("both")
    combine(model, weights, name="both", method=method, rank=rank)
    with torch.no_grad():
        expected = other(IDS).logits
        assert_close(model(IDS).logits, expected)
        assert_close(merge(copy.deepcopy(model), "both")(IDS).logits, other.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize(("method", "rank"), [("linear", None), ("svd", 2)])
def test_a_combined_adapter_loads_there(method, rank, tmp_path):
    model = combine(ours(), WEIGHTS, name="both", method=method, rank=rank)
    save_adapter(model, tmp_path / "both", name="both")
    other = peft.PeftModel.from_pretrained(tiny_model("llama", torch.float32), tmp_path / "both")
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "both")
    with torch.no_grad():
        expected = model(IDS).logits
        assert_close(other(IDS).logits, expected)
        assert torch.equal(again(IDS).logits, expected)


def test_merging_with_weights_equals_theirs(tmp_path):
    model = ours()
    other = theirs(model, tmp_path)
    set_adapters(model)
    merged = merge(model, weights=WEIGHTS).state_dict()
    for name, weight in WEIGHTS.items():
        for module in other.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    expected = other.merge_and_unload(adapter_names=list(WEIGHTS)).state_dict()
    assert merged.keys() == expected.keys()
    for key in merged:
        torch.testing.assert_close(merged[key], expected[key])
