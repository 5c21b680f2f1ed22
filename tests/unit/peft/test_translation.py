"""Settings of methods from PEFT's configurations: layers, warnings and initial values."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

import peftly
from peftly.peft import IA3Config, LoraConfig, NoMatchingPeftModuleError, PromptTuningConfig, get_peft_model
from peftly.peft.translation import method_of


def layers(*names: str) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})


def test_feedforward_modules_that_are_no_target_layers_are_left_out():
    config = IA3Config(target_modules=r".*lin.*", feedforward_modules=r".*lin.*", exclude_modules=["lin0"])
    method = method_of(config, layers("lin0", "lin1"))
    assert (method.target_modules, method.feedforward_modules) == (("lin1",), ("lin1",))
    method = method_of(IA3Config(target_modules=["a"], feedforward_modules=r"a|b"), layers("a", "b"))
    assert method.feedforward_modules == ("a",)


@pytest.mark.parametrize("excluded", [["no_such"], r".*no_such"])
def test_an_exclusion_without_effect_is_named(excluded):
    with pytest.warns(UserWarning, match=r"exclude_modules=.*no_such.* but no modules were excluded"):
        method_of(LoraConfig(target_modules=["a"], exclude_modules=excluded), layers("a", "b"))


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_key_of_a_pattern_that_matches_nothing_is_named(setting):
    with pytest.warns(UserWarning, match=f"{setting} has keys that match no target layer and are passed over: c"):
        get_peft_model(layers("a", "b"), LoraConfig(target_modules=["a"], **{setting: {"a": 2, "c": 4}}))


def test_a_random_initialisation_changes_the_outputs():
    for kind, arguments in [(LoraConfig, {"init_lora_weights": False}), (IA3Config, {"init_ia3_weights": False})]:
        model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
        before = model(x)
        more = {"feedforward_modules": []} if kind is IA3Config else {}
        get_peft_model(model, kind(target_modules=["0"], **arguments, **more))
        assert not torch.allclose(model(x), before)


def test_vocabulary_without_a_tokenizer_starts_from_tokens():
    model = tiny_model("llama")
    get_peft_model(model, PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB"))
    prompt = next(iter(peftly.trainable_parameters(model).values()))
    rows = model.get_input_embeddings().weight.float()
    assert all((rows == vector).all(1).any() for vector in prompt)


def test_no_matching_layer_is_the_error_of_peft():
    with pytest.raises(NoMatchingPeftModuleError, match="no_such"):
        get_peft_model(layers("a"), LoraConfig(target_modules=["no_such"]))


def test_an_adapter_in_half_precision_merges():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)).half(), torch.randn(5, 32).half()
    config = LoraConfig(target_modules=["0"], modules_to_save=["1"], init_lora_weights=False)
    model = get_peft_model(model, config).half()
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=1e-2, atol=1e-2)
