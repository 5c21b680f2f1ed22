"""PEFT's configurations: arguments, files, and refusals."""

import dataclasses
import json

import pytest
from tiny import tiny_model

import peftly
from peftly.errors import PeftlyError
from peftly.peft.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, get_peft_config
from peftly.peft.configs import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peftly.peft.lora_config import LoraConfig
from peftly.peft.translation import config_of, method_of

CONFIGS = [
    LoraConfig(r=4, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM", rank_pattern={"v_proj": 2}),
    LoraConfig(use_dora=True, target_modules=r".*\.q_proj"),
    IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    PromptTuningConfig(
        num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text="好", tokenizer_name_or_path="base"
    ),
    PromptEncoderConfig(num_virtual_tokens=3, encoder_reparameterization_type="LSTM", encoder_hidden_size=8),
    PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_survives_its_file(config, tmp_path):
    config.save_pretrained(tmp_path / "inner")
    assert PeftConfig.from_pretrained(tmp_path, subfolder="inner") == config
    assert type(config).from_pretrained(str(tmp_path / "inner")) == config
    assert get_peft_config(json.loads((tmp_path / "inner" / "adapter_config.json").read_text())) == config


def test_unknown_arguments_in_a_file_are_named(tmp_path):
    content = {"peft_type": "LORA", "r": 4, "of_the_future": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['of_the_future'\] for class LoraConfig"):
        assert PeftConfig.from_pretrained(tmp_path).r == 4


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LoraConfig, {"task_type": "CAUSAL"}, "Invalid task type: 'CAUSAL'"),
        (LoraConfig, {"target_modules": "all-linear", "layers_to_transform": [0]}, "`layers_to_transform` cannot be"),
        (LoraConfig, {"target_modules": ["q"], "layers_pattern": "h"}, "`layers_to_transform` must also"),
        (LoraConfig, {"use_qalora": True}, "peftly has no use_qalora"),
        (LoraConfig, {"trainable_token_indices": [1]}, "name the embedding in modules_to_save"),
        (PromptTuningConfig, {"prompt_tuning_init": "TEXT"}, "tokenizer_name_or_path can't be None"),
        (PromptTuningConfig, {"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs only valid"),
        (IA3Config, {"target_modules": ["a"], "feedforward_modules": ["b"]}, "should be a subset"),
    ],
)
def test_impossible_arguments_are_refused_by_name(kind, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        kind(**arguments)
    assert isinstance(error.value, PeftlyError)


@pytest.mark.parametrize("peft_type", ["XLORA", "PEFTLY_ADAPTER", None])
def test_a_method_of_another_name_is_refused(peft_type):
    with pytest.raises(ValueError, match=r"has no configuration in peftly\.peft, which has PROMPT_TUNING"):
        get_peft_config({"peft_type": peft_type})


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"Can't find 'adapter_config.json' at '{tmp_path}'"):
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("init", ["eva", "olora", "loftq", "corda", "orthogonal"])
def test_an_initialisation_that_peftly_lacks_is_refused_for_new_adapters_only(init):
    config = LoraConfig(init_lora_weights=init, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=f"peftly has no init_lora_weights='{init}' of PEFT; use "):
        method_of(config, tiny_model("llama"))


def test_a_model_type_without_default_layers_asks_for_target_modules():
    model = tiny_model("llama")
    model.config.model_type = "nobody_knows"
    for config, argument in [
        (LoraConfig(), "target_modules"),
        (IA3Config(target_modules=["q_proj"]), "feedforward_modules"),
    ]:
        with pytest.raises(ValueError, match=f"Please specify `{argument}` in `peft_config`"):
            method_of(config, model)


def test_a_base_configuration_describes_no_method():
    with pytest.raises(ValueError, match="PeftConfig is the configuration of no method; use one of PromptTuningConfig"):
        method_of(PeftConfig(), tiny_model("llama"))


def test_every_class_has_its_type():
    for peft_type, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        config = kind()
        assert config.peft_type == peft_type
        assert config.is_prompt_learning == ("num_virtual_tokens" in {field.name for field in dataclasses.fields(kind)})


def test_the_configuration_of_an_adapter_is_that_of_its_file(tmp_path):
    model = tiny_model("llama")
    for name, method in [("a", peftly.LoRA(rank=2)), ("b", peftly.PrefixTuning(num_virtual_tokens=3, init="random"))]:
        peftly.attach(model, method, name=name)
        peftly.save_adapter(model, tmp_path / name, name=name)
    from_file = {name: PeftConfig.from_pretrained(tmp_path / name) for name in "ab"}
    assert {name: config_of(adapter) for name, adapter in model._peftly.adapters.items()} == from_file
    assert from_file["a"].r == 2
