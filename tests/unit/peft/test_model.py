"""PEFT's methods on a model: its class, its adapters, copies, and what is refused."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers as tf
from other_models import other_model
from references import assert_close
from tiny import perturb, random_token_ids, tiny_model
from torch import nn

import peftly
import peftly.peft as ours
from peftly.errors import MethodError
from peftly.peft.helpers import check_if_peft_model, rescale_adapter_scale

IDS = torch.tensor(random_token_ids([7, 7]))
LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def llama():
    return tiny_model("llama", torch.float32).eval()


def with_lora(**settings):
    model = ours.get_peft_model(llama(), ours.LoraConfig(**LORA | settings)).eval()
    perturb(peftly.trainable_parameters(model).values())
    return model


class Network(nn.Module):
    """A module with attributes that PEFT has, too."""

    def __init__(self):
        super().__init__()
        self.base_model = nn.Linear(4, 8)
        self.model = nn.Linear(8, 2)

    def forward(self, x):
        return self.model(self.base_model(x).relu())


@torch.no_grad()
def logits(model, **settings):
    return model(IDS, **settings).logits


def test_the_model_is_the_same_object_of_both_classes_until_the_last_adapter_leaves():
    base = llama()
    kind, expected = type(base), logits(base)
    model = ours.get_peft_model(base, ours.LoraConfig(**LORA))
    assert model is base
    assert isinstance(model, ours.PeftModelForCausalLM)
    assert isinstance(model, kind)
    assert (type(model).__name__, type(model).__module__) == (kind.__name__, kind.__module__)
    assert type(model)(model.config).__class__ is kind
    model.add_adapter("second", ours.LoraConfig(**LORA))
    peftly.detach(model, "default")
    assert isinstance(model, ours.PeftModel)
    assert peftly.detach(model) is base
    assert type(base) is kind
    assert not hasattr(base, "peft_config")
    with pytest.raises(MethodError, match="no adapter"):
        peftly.save_adapter(base, "nowhere")
    assert torch.equal(logits(base), expected)
    peftly.attach(base, peftly.LoRA())
    with pytest.raises(MethodError, match="for adapters of PEFT"):
        base.set_adapter("default")


@pytest.mark.parametrize("make", [lambda: ours.PeftModel(llama(), ours.LoraConfig(**LORA)), with_lora])
def test_copies_and_pickles_are_models_of_peft(make):
    model = make()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert other.peft_config == model.peft_config
        assert other.peft_config is not model.peft_config
        assert torch.equal(logits(other), logits(model))
        other.unload()
        assert type(other) is tf.LlamaForCausalLM
    assert isinstance(model, ours.PeftModel)


def test_initial_values_follow_the_global_generator():
    prompts = []
    for seed in (1, 2, 1):
        model = llama()
        torch.manual_seed(seed)
        ours.get_peft_model(model, ours.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        prompts.append(model.get_prompt_embedding_to_save("default"))
    assert torch.equal(prompts[0], prompts[2])
    assert not torch.equal(prompts[0], prompts[1])


def test_base_model_is_the_body_with_the_methods_of_peft():
    model = with_lora()
    expected = logits(model)
    assert model.base_model.model is model
    assert model.base_model == model.model
    assert isinstance(model.base_model, tf.LlamaModel)
    assert model.get_decoder() == model.model
    assert torch.equal(model.base_model(IDS)[0], model.model(IDS)[0])
    assert model.base_model.model.model.layers[0] is model.model.layers[0]
    assert model.base_model.merge_and_unload() is model
    assert_close(logits(model), expected)
    body = ours.get_peft_model(tiny_model("bert", torch.float32).base_model, ours.LoraConfig(r=2))
    assert body.base_model.model is body
    assert body.get_decoder() is body
    assert not hasattr(body.unload(), "model")


def test_any_module_can_be_adapted():
    torch.manual_seed(0)
    network, x = Network(), torch.randn(3, 4)
    before = network(x)
    model = ours.get_peft_model(network, ours.LoraConfig(target_modules=["base_model", "model"]))
    assert torch.equal(model(x), before)
    perturb(peftly.trainable_parameters(model).values())
    after = model(x)
    assert model.base_model.model is model
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    names = [f"base_model.model.{path}.lora_{letter}.weight" for path in ("base_model", "model") for letter in "AB"]
    assert list(ours.get_peft_model_state_dict(model)) == names
    assert_close(model.merge_and_unload()(x), after)
    assert type(network) is Network


def test_adapters_are_added_chosen_and_deleted():
    model = with_lora()
    base, first = logits(llama()), logits(model)
    model.add_adapter("second", ours.LoraConfig(**LORA | {"target_modules": ["k_proj"]}))
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    assert torch.equal(logits(model), first)
    assert {name.split(".peftly.")[1].split(".")[0] for name in peftly.trainable_parameters(model)} == {"default"}
    model.set_adapter("second")
    perturb(peftly.trainable_parameters(model).values())
    second = logits(model)
    assert {name.split(".peftly.")[1].split(".")[0] for name in peftly.trainable_parameters(model)} == {"second"}
    mixed = logits(model, adapter_names=["default", "__base__"])
    assert_close(mixed[0], first[0])
    assert_close(mixed[1], base[1])
    generated = model.generate(IDS, max_new_tokens=3, do_sample=False, adapter_names=["default", "second"])
    model.set_adapter("default")
    assert torch.equal(generated[:1], model.generate(IDS[:1], max_new_tokens=3, do_sample=False))
    model.set_adapter(["default", "second"])
    assert model.active_adapter == ["default", "second"]
    model.set_adapter("second", inference_mode=True)
    assert not peftly.trainable_parameters(model)
    model.disable_adapter_layers()
    assert torch.equal(logits(model), base)
    assert (model.active_adapters, model.get_model_status().enabled) == (["second"], False)
    model.enable_adapter_layers()
    assert torch.equal(logits(model), second)
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), first)


def test_functions_of_peftly_and_methods_of_peft_see_the_same_adapters(tmp_path):
    model = peftly.attach(with_lora(), peftly.AdapterConfig(bottleneck_dim=2), name="own")
    assert [config.peft_type for config in model.peft_config.values()] == ["LORA", "PEFTLY_ADAPTER"]
    expected = logits(model)
    peftly.save_adapter(model, tmp_path)
    peftly.detach(model, "default")
    assert list(model.peft_config) == model.active_adapters == ["own"]
    loaded = ours.PeftModel.from_pretrained(llama(), tmp_path)
    assert list(loaded.peft_config) == ["default", "own"]
    assert torch.equal(logits(loaded), expected)


def test_weighted_sums_are_exact():
    model = with_lora()
    base = logits(llama())
    model.add_adapter("second", ours.LoraConfig(**LORA | {"r": 2}))
    model.set_adapter("second")
    perturb(peftly.trainable_parameters(model).values(), seed=3)
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "cat", combination_type="cat")
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "svd", svd_rank=6)
    assert model.active_adapters == ["second"]
    assert (model.peft_config["cat"].r, model.peft_config["svd"].r) == (6, 6)
    model.set_adapter(["default", "second"])
    expected = logits(model)
    assert not torch.equal(expected, base)
    for name in ("cat", "svd"):
        model.set_adapter(name)
        assert_close(logits(model), expected)
    with pytest.raises(MethodError, match="ties"):
        model.add_weighted_adapter(["default"], [1.0], "x", combination_type="ties")
    with pytest.raises(MethodError, match="density"):
        model.add_weighted_adapter(["default"], [1.0], "x", density=0.5)


def test_merging_takes_the_named_adapters_and_drops_the_others():
    model = with_lora()
    expected = logits(model)
    model.add_adapter("second", ours.LoraConfig(**LORA, init_lora_weights=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = model.merge_and_unload()
    assert type(merged) is tf.LlamaForCausalLM
    assert_close(logits(merged), expected)
    prompted = ours.get_peft_model(llama(), ours.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(MethodError, match="cannot be merged"):
        prompted.merge_and_unload()
    assert isinstance(prompted, ours.PeftModel)
    with pytest.raises(MethodError, match="deepcopy"):
        with_lora().merge_adapter()


def test_a_merge_that_fails_leaves_a_model_of_peft(monkeypatch):
    model = with_lora()
    model.add_adapter("second", ours.LoraConfig(**LORA))
    expected = logits(model)
    monkeypatch.setattr("peftly.adapters.merge.warn", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("late")))
    with pytest.raises(RuntimeError, match="late"):
        model.merge_and_unload()
    assert isinstance(model, ours.PeftModelForCausalLM)
    assert torch.equal(logits(model), expected)
    assert list(model.peft_config) == list(peftly.attached(model)) == ["default", "second"]
    monkeypatch.undo()
    assert type(model.unload()) is tf.LlamaForCausalLM


def test_scaled_updates():
    model = with_lora()
    expected, base = logits(model), logits(llama())
    with rescale_adapter_scale(model, 0.0):
        assert_close(logits(model), base)
    assert torch.equal(logits(model), expected)


def test_tensors_are_set_and_compared():
    model = with_lora()
    tensors = ours.get_peft_model_state_dict(model)
    other = ours.get_peft_model(llama(), ours.LoraConfig(**LORA))
    first, *rest = tensors
    partial = {"base_model.model.nowhere.weight": torch.ones(1), **{name: tensors[name] for name in rest}}
    assert ours.set_peft_model_state_dict(other, partial) == ([first], ["base_model.model.nowhere.weight"])
    assert ours.set_peft_model_state_dict(other, tensors) == ([], [])
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(ValueError, match=r"lora_A\.weight is \(1, 1\)"):
        ours.set_peft_model_state_dict(other, {first: torch.ones(1, 1)})
    with pytest.warns(UserWarning, match="not loaded"):
        missing, _ = ours.set_peft_model_state_dict(other, {first: torch.ones(1, 1)}, ignore_mismatched_sizes=True)
    assert len(missing) == len(tensors)
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    assert all(value.eq(1).all() for value in ours.get_peft_model_state_dict(model, state).values())
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("kind", ["PromptEncoderConfig", "PrefixTuningConfig"])
def test_a_prompt_from_a_file_replaces_the_network_that_computes_it(kind):
    settings = {"prefix_projection": True} if kind == "PrefixTuningConfig" else {}
    config = getattr(ours, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8, **settings)
    model = ours.get_peft_model(llama(), config)
    prompt = torch.randn_like(model.get_prompt_embedding_to_save("default"))
    before = logits(model)
    ours.set_peft_model_state_dict(model, {"prompt_embeddings": prompt})
    assert torch.equal(model.get_prompt_embedding_to_save("default"), prompt)
    assert not torch.equal(logits(model), before)
    logits(model).sum()
    assert len(peftly.trainable_parameters(model)) == 1


def test_loading_freezes_and_reloads(tmp_path):
    model = with_lora()
    model.add_adapter("second", ours.IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "second"}
    loaded = ours.PeftModel.from_pretrained(llama().train(), tmp_path)
    assert isinstance(loaded, ours.PeftModelForCausalLM)
    assert loaded.peft_config["default"].inference_mode
    assert not loaded.training
    assert loaded.load_adapter(tmp_path / "second", "second", is_trainable=True) == ([], [])
    assert loaded.active_adapters == ["default"]
    assert torch.equal(logits(loaded), logits(model))
    loaded.set_adapter("second")
    model.set_adapter("second")
    assert torch.equal(logits(loaded), logits(model))
    loaded.set_adapter("default")
    loaded.load_adapter(tmp_path / "second", "third")
    assert torch.equal(logits(ours.PeftModel.from_pretrained(llama(), tmp_path / "second")), logits(model))
    perturb(p for name, p in loaded.named_parameters() if ".default." in name)
    loaded.load_adapter(tmp_path, "default")
    model.set_adapter("default")
    assert torch.equal(logits(loaded), logits(model))
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["second"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ours.LoraConfig(r=9, task_type="CAUSAL_LM"), "config has r=9"),
        (ours.LoraConfig(**LORA | {"target_modules": ["k_proj"]}), "config has the layer .*k_proj"),
        (ours.LoraConfig(**LORA | {"target_modules": ["q_proj"]}), "the file of the adapter has the layer .*v_proj"),
        (ours.LoraConfig(**LORA, layers_to_transform=[0]), "config does not"),
        (ours.IA3Config(task_type="CAUSAL_LM"), "peft_type"),
    ],
    ids=["rank", "other layers", "fewer layers", "one block", "other method"],
)
def test_a_config_that_differs_from_the_file_is_refused(config, message, tmp_path):
    with_lora().save_pretrained(tmp_path)
    model = llama()
    with pytest.raises(MethodError, match=message):
        ours.PeftModel.from_pretrained(model, tmp_path, config=config)
    assert not peftly.attached(model)


@pytest.mark.parametrize(
    "config",
    [
        ours.LoraConfig(**LORA),
        ours.LoraConfig(**LORA | {"target_modules": None}),
        ours.LoraConfig(**LORA | {"target_modules": r".*\.(q|v)_proj"}, init_lora_weights="gaussian"),
        ours.LoraConfig(**LORA, layers_to_transform=[0]),
        ours.LoraConfig(**LORA | {"target_modules": "all-linear"}, exclude_modules=["k_proj"]),
        ours.LoraConfig(**LORA, bias="all"),
        ours.LoraConfig(**LORA, modules_to_save=["down_proj"]),
        ours.LoraConfig(**LORA | {"target_modules": ["q_proj", "embed_tokens"]}, use_dora=True),
        ours.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "embed_tokens"], feedforward_modules=[]),
    ],
    ids=["names", "default", "expression", "one block", "all but some", "biases", "copies", "DoRA", "(IA)³"],
)
def test_a_config_that_chooses_the_layers_of_the_file_is_taken(config, tmp_path):
    given = copy.deepcopy(config)
    base = tiny_model("llama", torch.float32, attention_bias=True).eval()
    model = ours.get_peft_model(copy.deepcopy(base), config).eval()
    perturb(peftly.trainable_parameters(model).values())
    model.save_pretrained(tmp_path)
    loaded = ours.PeftModel.from_pretrained(base, tmp_path, config=given)
    assert loaded.peft_config["default"] is given
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("again", [False, True])
def test_the_revision_of_the_base_is_kept(again, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = ours.get_peft_model(base, ours.LoraConfig(**LORA), revision="v2.0.0")
    model.save_pretrained(tmp_path / "adapter")
    if again:
        loaded = ours.PeftModel.from_pretrained(model.unload(), tmp_path / "adapter")
        loaded.save_pretrained(tmp_path / "adapter")
    assert ours.PeftConfig.from_pretrained(tmp_path / "adapter").revision == "v2.0.0"


@pytest.mark.parametrize("names", [["default"], ["default", "__base__", "default"], "default"])
def test_names_of_adapters_are_one_for_each_element(names):
    model = with_lora()
    for call in (lambda: model(IDS, adapter_names=names), lambda: model.generate(IDS, adapter_names=names)):
        with pytest.raises(MethodError, match="adapter_names"):
            call()


def test_adapter_and_base_are_opened_together(tmp_path):
    classifier = tiny_model("bert", torch.float32, task="sequence_classification").eval()
    classifier.save_pretrained(tmp_path / "base")
    base = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    base.config.id2label = {0: "good", 1: "bad", 2: "odd"}
    model = ours.get_peft_model(base, ours.LoraConfig(task_type="SEQ_CLS", r=2)).eval()
    perturb(peftly.trainable_parameters(model).values())
    model.save_pretrained(tmp_path / "adapter")
    for kind in (ours.AutoPeftModel, ours.AutoPeftModelForSequenceClassification):
        opened = kind.from_pretrained(tmp_path / "adapter")
        assert isinstance(opened, ours.PeftModelForSequenceClassification)
        assert opened.config.id2label == {0: "good", 1: "bad", 2: "odd"}
        assert torch.equal(logits(opened), logits(model))
    with pytest.raises(ValueError, match="opens CAUSAL_LM"):
        ours.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match="from_pretrained"):
        ours.AutoPeftModel()


@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM"])
def test_a_base_that_the_class_of_its_task_does_not_open(task_type, tmp_path):
    base, inputs = other_model("WhisperForConditionalGeneration")
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base").eval()
    model = ours.get_peft_model(base, ours.LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"])).eval()
    perturb(peftly.trainable_parameters(model).values())
    model.save_pretrained(tmp_path / "adapter")
    opened = ours.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert isinstance(opened, tf.WhisperForConditionalGeneration)
    assert_close(opened(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("content", ['{"foo": "bar"}', '{"peft_type": "LOHA"}', "[]", "{", None])
def test_a_folder_without_a_sound_configuration_is_no_adapter(content, tmp_path):
    assert check_if_peft_model(tmp_path) is False
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    assert check_if_peft_model(tmp_path) is False


def test_preparing_a_quantised_base_freezes_and_checkpoints():
    model = ours.prepare_model_for_kbit_training(llama(), gradient_checkpointing_kwargs={"use_reentrant": True})
    assert model.is_gradient_checkpointing
    assert not peftly.trainable_parameters(model)
    ours.get_peft_model(model, ours.LoraConfig(**LORA)).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in peftly.trainable_parameters(model).values())
    assert not ours.prepare_model_for_kbit_training(llama(), use_gradient_checkpointing=False).is_gradient_checkpointing


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.get_prompt_embedding_to_save("wrong"),
        lambda model: model.set_adapter("wrong"),
        lambda model: model.delete_adapter("wrong"),
        lambda model: model.merge_and_unload(adapter_names=["wrong"]),
        lambda model: model.save_pretrained("unused", selected_adapters=["wrong"]),
        lambda model: ours.get_peft_model_state_dict(model, adapter_name="wrong"),
    ],
)
def test_a_wrong_name_is_an_error_of_peftly(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((MethodError, ValueError), match="wrong"):
        call(with_lora())
    assert not any(tmp_path.iterdir())


def test_what_is_refused():
    with pytest.raises(MethodError, match="'gpt2' is no model"):
        ours.get_peft_model("gpt2", ours.LoraConfig())
    model = with_lora()
    with pytest.raises(MethodError, match=r"model\.unload\(\) first"):
        ours.get_peft_model(model, ours.LoraConfig(**LORA))
    with pytest.raises(MethodError, match=r"peftly\.detach"):
        ours.get_peft_model(peftly.attach(llama(), peftly.LoRA()), ours.LoraConfig(**LORA))
    with pytest.raises(MethodError, match="no adapter 'other'"):
        model.set_adapter("other")
    with pytest.raises(MethodError, match="use get_peft_model"):
        ours.inject_adapter_in_model(ours.PromptTuningConfig(num_virtual_tokens=2), llama())
    with pytest.raises(ImportError, match="AdaLora; use LoraConfig"):
        from peftly.peft import AdaLoraConfig  # noqa: F401
    with pytest.raises(ValueError, match="safe_serialization"):
        model.save_pretrained("nowhere", safe_serialization=False)


def test_an_injected_adapter_leaves_the_class():
    model = ours.inject_adapter_in_model(ours.LoraConfig(**LORA, init_lora_weights=False), llama(), "mine")
    assert type(model) is tf.LlamaForCausalLM
    assert list(peftly.attached(model)) == ["mine"]
