"""Arguments that people pass who know PEFT: each is answered in one line, and nothing changes silently."""

import peft
import pytest
import torch
import transformers as tf
from references import assert_close
from tiny import perturb, tiny_model

from peftly import (
    IA3,
    LoRA,
    attach,
    attached,
    detach,
    export,
    load,
    load_adapter,
    load_base,
    merge,
    save_adapter,
    save_merged,
    set_adapters,
    trainable_parameters,
)
from peftly.errors import AdapterError, ConfigError, MethodError

IDS = torch.tensor([[5, 17, 33, 60]])
THEIRS = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])


def llama():
    return tiny_model("llama", torch.float32)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (THEIRS, "a LoraConfig is not the settings of a method of peftly; use peftly.LoRA"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "use peftly.PrefixTuning"),
        ("lora", "'lora' is not the settings of a method"),
        ([LoRA(), IA3()], "a list is not the settings"),
        (LoRA, r"peftly.LoRA is a class; give settings: peftly.LoRA\(\)"),
        (None, r"such as peftly.LoRA\(rank=8\)"),
    ],
    ids=["LoraConfig", "PrefixTuningConfig", "text", "list", "class", "none"],
)
def test_other_settings_are_refused(config, words):
    """An AttributeError: 'LoraConfig' object has no attribute 'name'."""
    model = llama()
    with pytest.raises(MethodError, match=words):
        attach(model, config)
    assert not attached(model)


def test_something_else_than_a_model_is_refused(tiny_llama_folder, tmp_path):
    base = load_base(str(tiny_llama_folder))
    for function in (lambda model: attach(model, LoRA()), merge, detach, lambda model: save_adapter(model, tmp_path)):
        with pytest.raises(MethodError, match="a Base is no model; pass its model"):
            function(base)
        with pytest.raises(MethodError, match=r"'smollm2-135m' is no model; open one with peftly\.load_base"):
            function("smollm2-135m")
    pipeline = tf.pipeline("text-generation", model=base.model, tokenizer=base.tokenizer)
    with pytest.raises(MethodError, match="a TextGenerationPipeline is no model; pass its model"):
        attach(pipeline, LoRA())


def test_something_else_than_an_adapter_is_refused(tiny_llama_folder, tmp_path):
    model = attach(llama(), LoRA())
    for function in (
        load,
        lambda source: load_adapter("adapter", source),
        lambda source: save_merged(source, tmp_path / "out"),
        lambda source: export(source, "peft", tmp_path / "out"),
    ):
        with pytest.raises(AdapterError, match="give the folder, run or Hub id of an adapter, not a Llama"):
            function(model)
    with pytest.raises(AdapterError, match=r"holds no adapter: .*; it is a base, which peftly\.load_base opens"):
        load(tiny_llama_folder)


def test_names_of_adapters_are_given_one_by_one():
    model = attach(llama(), LoRA())
    with pytest.raises(MethodError, match=r"\['default'\] is no name of an adapter; give names one by one"):
        set_adapters(model, ["default"])


def test_settings_that_are_one_of_a_few_texts():
    with pytest.raises(ConfigError, match=r"bias: give a value of 'none', 'all', 'lora_only'"):
        LoRA(bias=True)


def test_the_name_of_a_layer_alone_is_no_list():
    with pytest.raises(MethodError, match=r"regular expression of whole paths.*target_modules=\['q_proj'\]"):
        attach(llama(), LoRA(target_modules="q_proj"))


@pytest.mark.parametrize("kind", ["whole", "inside", "prompt"])
def test_a_model_with_an_adapter_of_peft_gets_none(kind, tmp_path):
    """Its file had the adapter of peftly alone, so that the opened model was another."""
    model = base = llama()
    if kind == "inside":
        base.add_adapter(THEIRS)
    else:
        prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        model = peft.get_peft_model(base, THEIRS if kind == "whole" else prompt)
    save_adapter(attach(llama(), IA3()), tmp_path)
    for function in (lambda: attach(model, IA3()), lambda: load_adapter(model, tmp_path)):
        with pytest.raises(MethodError, match=r"has an adapter of PEFT .*peftly\.load_adapter.*merge_and_unload"):
            function()
    assert not attached(base)


def test_peft_on_an_adapted_model_is_refused_at_its_first_call(tmp_path):
    """PEFT froze the adapter and trained another; `save_adapter` wrote the frozen one, under names of its own."""
    model = attach(llama(), LoRA(rank=2))
    theirs = peft.get_peft_model(model, THEIRS)
    with pytest.raises(MethodError, match=r"PEFT has put an adapter of its own .*q_proj.* leave out peft_config"):
        theirs(IDS)
    with pytest.raises(MethodError, match="has an adapter of PEFT"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_methods_for_adapters_of_peft_name_the_functions_of_peftly(tmp_path):
    """`load_adapter` put an adapter of PEFT around ours, and `disable_adapters` knew none."""
    model = attach(llama(), LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    expected = model(IDS).logits
    save_adapter(model, tmp_path)
    for method, words in {
        "add_adapter": "use peftly.attach",
        "load_adapter": "use peftly.load_adapter",
        "set_adapter": "use peftly.set_adapters",
        "disable_adapters": "use peftly.use_adapters",
        "enable_adapters": "use peftly.set_adapters",
        "delete_adapter": "use peftly.detach",
    }.items():
        with pytest.raises(MethodError, match=rf"LlamaForCausalLM\.{method} is for adapters of PEFT; {words}"):
            getattr(model, method)(str(tmp_path))
    assert_close(model(IDS).logits, expected, 0)
    detach(model).load_adapter(str(tmp_path))  # by transformers, with PEFT
    assert_close(model(IDS).logits, expected, 1e-6)
