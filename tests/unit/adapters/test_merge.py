"""Merging in memory: weights are rounded once, in place, and only layers that the model computes are merged."""

import copy
import warnings

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import perturb, tiny_model
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from peftly import (
    METHODS,
    AdapterConfig,
    LoRA,
    PrefixTuning,
    PromptTuning,
    Selective,
    attach,
    attached,
    detach,
    merge,
    trainable_parameters,
    use_adapters,
)
from peftly.errors import MethodError
from peftly.methods.lora import LoRALayer

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "full"])
def test_a_merge_in_bf16_is_one_in_fp32_that_is_rounded_once(architecture, method):
    model = tiny_model(architecture, torch.bfloat16)
    attach(model, METHODS[method].config(**DEFAULTS[method]), name="one")
    if method == "lora":
        attach(model, LoRA(rank=3), name="two", seed=1)
    perturb(trainable_parameters(model).values())
    wide = merge(copy.deepcopy(model).float())
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters() if "peftly" not in name}
    merge(model)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wide.get_parameter(name).to(torch.bfloat16)), name
        assert parameter.dtype == torch.bfloat16


def test_layers_inside_a_module_copy_are_not_merged():
    model = tiny_model("llama", torch.float32)
    attach(model, LoRA(rank=3, modules_to_save=("layers.1",)), name="first")
    perturb(trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(IDS).logits
        assert_close(merge(model)(IDS).logits, expected)


HIDDEN = {
    "lora": LoRA(rank=2, target_modules=("up_proj",)),
    "a copy": LoRA(rank=2, target_modules=("layers.0.self_attn.v_proj",), modules_to_save=("layers.1.mlp",)),
    "bottlenecks": AdapterConfig(),
}


@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("is_first", [True, False])
def test_changes_that_a_module_copy_hides_are_not_merged(case, is_first):
    model = tiny_model("llama", torch.float32)
    copies = LoRA(rank=2, target_modules=("layers.0.self_attn.q_proj",), modules_to_save=("layers.1",))
    for name, config in (("copies", copies), ("hidden", HIDDEN[case]))[:: 1 if is_first else -1]:
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(IDS).logits
        match = (
            r"copies trains a copy of model\.layers\.1, so the change of hidden in model\.layers\.1\.\S+ has no effect"
        )
        with pytest.raises(MethodError, match=match):
            merge(model, "copies")
        assert torch.equal(model(IDS).logits, expected)
        if case != "bottlenecks":
            assert_close(merge(copy.deepcopy(model), "hidden")(IDS).logits, expected)
            assert_close(merge(model)(IDS).logits, expected)


def test_a_prefix_has_the_same_effect_with_a_copy_and_with_merged_weights():
    model = tiny_model("llama", torch.float32)
    attach(model, LoRA(rank=2, modules_to_save=("layers.1",)), name="copies")
    attach(model, PrefixTuning(num_virtual_tokens=3, init="random"), name="prefix")
    perturb(trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(IDS).logits
        assert_close(merge(model, "copies")(IDS).logits, expected)


@pytest.mark.parametrize("copied", ["layers.1", "model"])
@pytest.mark.parametrize("is_first", [True, False], ids=["prefix first", "copy first"])
def test_a_prefix_and_a_copy_of_its_stack(copied, is_first):
    """In either order: the copy of the stack calls no hook of the stack, whose calls insert the prefix."""
    model = tiny_model("llama", torch.float32)
    prefix, copies = PrefixTuning(num_virtual_tokens=3, init="random"), Selective(last_layers=0, modules=(copied,))
    for name, config in [("prefix", prefix), ("copies", copies)][:: 1 if is_first else -1]:
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(IDS).logits
        with use_adapters(model, "copies"):
            assert (model(IDS).logits - expected).norm() > 1e-3 * expected.norm()
        assert_close(merge(model, "copies")(IDS).logits, expected)


def test_an_adapter_that_cannot_be_merged_leaves_the_model_unchanged():
    model = tiny_model("gpt2")
    attach(model, LoRA(target_modules=("lm_head",)), name="lora")
    attach(model, PromptTuning(init="random"), name="prompt")
    perturb(trainable_parameters(model).values())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MethodError, match=r"prompt_tuning cannot be merged: .* with its base instead \(peftly\.load"):
        merge(model)
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []
    assert list(attached(model)) == ["lora", "prompt"]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.mergeable])
def test_a_method_that_changes_no_weights_is_refused_with_advice(method):
    model = tiny_model("bert", task="sequence_classification")
    if METHODS[method].adapter.unsupported_reason(model):
        model = tiny_model("llama", task="sequence_classification")
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    with pytest.raises(MethodError, match=f"^{method} cannot be merged: .* load it with its base instead"):
        merge(model)


def linear_model(change) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    change(model[0])
    return model


COMPUTED = {
    "weight_norm": (nn.utils.parametrizations.weight_norm, r'remove_parametrizations\(layer, "weight"\)'),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, r'remove_parametrizations\(layer, "weight"\)'),
    "old weight_norm": (nn.utils.weight_norm, r'remove_weight_norm\(layer, "weight"\)'),
    "old spectral_norm": (nn.utils.spectral_norm, r'remove_spectral_norm\(layer, "weight"\)'),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r'prune\.remove\(layer, "weight"\)'),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("method", ["lora", "dora", "bitfit", "selective"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_are_computed_from_others(kind, method):
    """Adapters work on them. A merge into the computed weight would be lost, one into the other tensors is right."""
    torch.manual_seed(0)  # differences are compared with rounding
    change, advice = COMPUTED[kind]
    model, x = linear_model(change).requires_grad_(False).eval(), torch.randn(4, 8)
    base = model(x)
    settings = {"rank": 2} if method in ("lora", "dora") else {}
    settings |= {"last_layers": 0, "modules": ("0", "2")} if method == "selective" else {}
    attach(model, METHODS[method].config(**settings))
    torch.testing.assert_close(model(x), base)
    perturb(trainable_parameters(model).values())
    with torch.no_grad():
        expected = model(x)
    assert (expected - base).norm() > 1e-2 * base.norm()
    if method in ("lora", "dora"):
        with pytest.raises(MethodError, match=rf"0\.weight is computed from other tensors \(.*\).*{advice}"):
            merge(model)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(detach(model)(x), base)
    else:
        torch.testing.assert_close(merge(model)(x), expected)


class Doubled(nn.Linear):
    """Layer for which adding an update to the weight is not adding it to the output."""

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("weights", [None, {"default": 0.5}])
def test_a_layer_whose_outputs_would_change_is_refused_before_anything_is_merged(weights):
    model, x = nn.Sequential(nn.Linear(8, 8), Doubled(8, 2)), torch.randn(4, 8)
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(x)
    with pytest.raises(MethodError, match="1, a Doubled, cannot be merged: its outputs would change by"):
        merge(model, weights=weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(x), expected)
    assert list(attached(model)) == ["default"]


@pytest.mark.parametrize("weights", [None, {"default": 0.5}])
@pytest.mark.parametrize("failing_call", [5, 14 + 5], ids=["comparison", "replacement"])
def test_a_merge_that_fails_midway_leaves_the_model_as_it_was(failing_call, weights, monkeypatch):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    expected, calls, merge_into = model(IDS).logits, [], LoRALayer.merge_into

    def failing(change, layer):
        calls.append(layer)
        merge_into(change, layer)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(LoRALayer, "merge_into", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        merge(model, weights=weights)
    assert torch.equal(model(IDS).logits, expected)
    assert list(attached(model)) == ["default"]


def test_a_warning_that_is_an_error_undoes_the_merge():
    model = attach(tiny_model("gpt2", torch.float32), LoRA(target_modules=("lm_head",)))
    perturb(trainable_parameters(model).values())
    expected = model(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="untied, as merging makes them different"):
            merge(model)
    assert torch.equal(model(IDS).logits, expected)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("rank", [8, 256])
@pytest.mark.parametrize(
    "layer", [nn.Linear(16, 24), Conv1D(24, 16), nn.Embedding(16, 24)], ids=lambda layer: str(layer)
)
def test_kinds_of_layers_of_any_rank_are_merged(layer, rank):
    model = nn.Sequential(copy.deepcopy(layer))
    x = torch.arange(16) if isinstance(layer, nn.Embedding) else torch.randn(4, 16)
    attach(model, LoRA(rank=rank, target_modules=("0",)))
    perturb(trainable_parameters(model).values(), 1.0)
    expected = model(x)
    torch.testing.assert_close(merge(model)(x), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


def test_a_merged_copy_has_the_running_statistics_of_its_training():
    model, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), torch.randn(16, 8)
    attach(model.eval(), Selective(last_layers=0, modules=("1",)))
    model.train()(x)
    expected = model.eval()(x)
    torch.testing.assert_close(merge(model)(x), expected)
