"""Merging in memory: weights are rounded once, in place, and only layers that the model computes are merged."""

import copy

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import perturb, tiny_model

from peftly import (
    METHODS,
    AdapterConfig,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    merge,
    trainable_parameters,
)
from peftly.errors import MethodError

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
