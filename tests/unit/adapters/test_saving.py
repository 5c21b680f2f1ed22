"""Adapter folders are written completely or not at all, and damaged folders are refused."""

import copy
import json
import warnings

import pytest
import torch
import transformers
from adapter_files import edit_config, without_checksums
from references import ARCHITECTURE_OF, DEFAULTS
from safetensors.torch import load_file, save_file
from tiny import perturb, tiny_model

from peftly import (
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    attach,
    attached,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from peftly.adapters import adapter_card
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import AdapterError, MethodError
from peftly.methods import METHODS

IDS = torch.tensor([[5, 6, 7, 8]])


def make(method="lora"):
    model = attach(tiny_model(ARCHITECTURE_OF[method], torch.float32), METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values())
    return model


@pytest.fixture
def folder(tmp_path):
    return save_adapter(make(), tmp_path / "adapter")


def test_patterns_that_both_fit_a_layer_mean_the_same_before_and_after(tmp_path):
    """Files have their keys in alphabetical order, settings in training in any order."""
    config = LoRA(rank=3, alpha_pattern={"v_proj": 3, "0.self_attn.v_proj": 40})
    model = attach(tiny_model("llama", torch.float32), config)
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("method", ARCHITECTURE_OF)
def test_a_loaded_adapter_equals_the_saved_one(method, tmp_path):
    model = make(method)
    save_adapter(model, tmp_path / "adapter", notes={"shape": {"kind": "text"}})
    again = load_adapter(tiny_model(ARCHITECTURE_OF[method], torch.float32), tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert attached(again)["default"].config == attached(model)["default"].config
    assert trainable_parameters(again).keys() == trainable_parameters(model).keys(), "training can go on"
    assert open_adapters(tmp_path / "adapter").notes["row_format"] == {"kind": "text"}
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "peftly.json"}
    files |= {"training.safetensors"} if method == "p_tuning" else set()
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == files


def test_files_are_written_as_peft_writes_them(folder):
    text = (folder / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert config["inference_mode"] is True
    assert all(tensor.dtype == torch.float32 for tensor in load_file(folder / "adapter_model.safetensors").values())


def test_a_new_adapter_replaces_an_old_one_and_nothing_else(folder):
    (folder / "mine.txt").write_text("keep")
    save_adapter(make("prompt_tuning"), folder)
    assert attached(load_adapter(tiny_model("llama", torch.float32), folder))["default"].config.name == "prompt_tuning"
    assert (folder / "mine.txt").read_text() == "keep"
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_the_readme_of_a_project_stays(tmp_path):
    (tmp_path / "README.md").write_text("my project")
    save_adapter(make(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
    load_adapter(tiny_model("llama", torch.float32), tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("notes")
    model = attach(make(), LoRA(rank=2), name="a")
    save_adapter(model, tmp_path)
    assert (tmp_path / "a" / "README.md").read_text() == "notes"
    assert (tmp_path / "default" / "README.md").exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftly.adapters.saving.write_tensors", full)
    with pytest.raises(AdapterError, match="No space left on device"):
        save_adapter(make(), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_parameters_over_a_bf16_base_are_fp32_before_and_after(tmp_path):
    model = attach(tiny_model("llama", torch.bfloat16), LoRA(rank=4))
    perturb(trainable_parameters(model).values())
    assert model(IDS).logits.dtype == torch.bfloat16
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(tiny_model("llama", torch.bfloat16), tmp_path / "adapter")
    assert all(parameter.dtype == torch.float32 for parameter in trainable_parameters(again).values())
    assert torch.equal(again(IDS).logits, model(IDS).logits)


class TestBadFolders:
    """Adapters without checksums; those with checksums are in test_checksums.py."""

    @pytest.fixture
    def folder(self, folder):
        return without_checksums(folder)

    def refused(self, folder, match, architecture="llama"):
        model = tiny_model(architecture, torch.float32)
        with pytest.raises((AdapterError, MethodError), match=match) as caught:
            load_adapter(model, folder)
        assert "\n" not in str(caught.value)
        assert attached(model) == {}
        assert trainable_parameters(model), "the base is as it was"

    def test_nothing_there(self, tmp_path):
        self.refused(tmp_path, "holds no adapter: it has no adapter_config.json")
        self.refused(tmp_path / "none", "holds no adapter: there is no such folder")
        with pytest.raises(AdapterError, match="holds no adapter"):
            open_adapters(tmp_path)

    def test_broken_json(self, folder):
        (folder / "adapter_config.json").write_text("{")
        self.refused(folder, "cannot be read as JSON")

    def test_no_type(self, folder):
        (folder / "adapter_config.json").write_text("{}")
        self.refused(folder, "names no peft_type")

    def test_unknown_type(self, folder):
        edit_config(folder, peft_type="LOHA")
        self.refused(folder, "peft_type 'LOHA'; peftly reads PROMPT_TUNING, PEFTLY_PROMPT_TUNING")

    def test_dora_is_not_run_as_lora(self, folder):
        edit_config(folder, use_dora=True)
        self.refused(folder, r"adapter_config\.json disagree: by the first, method is lora, and by the second dora")
        (folder / "peftly.json").unlink()
        self.refused(folder, r"lacks .*lora_magnitude_vector")

    @pytest.mark.parametrize("key", ["layers_to_transform", "exclude_modules", "lora_bias"])
    def test_features_that_would_be_ignored(self, folder, key):
        edit_config(folder, **{key: {"x": 1}})
        self.refused(folder, key)

    def test_an_impossible_value(self, folder):
        (folder / "peftly.json").unlink()
        edit_config(folder, r=0)
        self.refused(folder, "not a sound LORA configuration")

    def test_no_tensors(self, folder):
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        self.refused(folder, "is a pickle, which is not opened")

    def test_cut_off_tensors(self, folder):
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        self.refused(folder, "is damaged")

    def test_missing_and_extra_tensors(self, folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        removed = tensors.pop(sorted(tensors)[0])
        save_file(tensors, path)
        self.refused(folder, "lacks base_model.model.model.layers.0")
        save_file(tensors | {sorted(make_names())[0]: removed, "other": removed.clone()}, path)
        self.refused(folder, "also has other")

    def test_another_base(self, folder):
        self.refused(folder, "lacks base_model.model.transformer.h.0", architecture="gpt2")
        (folder / "peftly.json").unlink()
        self.refused(folder, "match no linear layer", architecture="gpt2")

    def test_another_width(self, folder):
        path = folder / "adapter_model.safetensors"
        cut = {name: tensor[:, :3] if "lora_A" in name else tensor for name, tensor in load_file(path).items()}
        save_file({name: tensor.contiguous() for name, tensor in cut.items()}, path)
        self.refused(folder, r"is \(4, 3\), and the base needs \(4, \d+\)")


def make_names():
    return attached(make())["default"].parameters()


def test_saving_without_an_adapter(tmp_path):
    with pytest.raises(MethodError, match="carries no adapter"):
        save_adapter(tiny_model("llama"), tmp_path / "adapter")


def test_prompt_of_peft_keeps_its_length(tmp_path):
    model = attach(tiny_model("llama", torch.float32), PromptTuning(num_virtual_tokens=3, init="random"))
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "peftly.json").unlink()
    assert (
        attached(load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter"))[
            "default"
        ].config.num_virtual_tokens
        == 3
    )


MADE = {
    "p_tuning lstm": PTuning(num_virtual_tokens=3, encoder="lstm", encoder_dim=4),
    "p_tuning mlp": PTuning(num_virtual_tokens=3),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=3),
    "prefix_tuning mlp": PrefixTuning(num_virtual_tokens=3, projection=True, projection_dim=5),
    "prompt_tuning": PromptTuning(num_virtual_tokens=3, init="random"),
    "prompt_tuning residual": PromptTuning(num_virtual_tokens=3, init="random", residual_dim=4),
    "lora pissa": LoRA(rank=2, init="pissa"),
}


NETWORKS = [case for case in MADE if " " in case and not case.startswith("lora")]
TASKS = [("llama", "causal_lm"), ("roberta", "sequence_classification"), ("t5", "seq2seq_lm")]


def a_step(model):
    classifies = type(model).__name__.endswith("Classification")
    loss = model(IDS, labels=torch.tensor([1]) if classifies else IDS).loss
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.02)
    loss.backward()
    optimizer.step()
    model.zero_grad()
    return loss.item()


def goes_on(model, again, folder):
    """Train three steps, save, and train three more: on the model, and on another base with the adapter of the file."""
    losses = [a_step(model) for _ in range(3)]
    assert losses[-1] < losses[0]
    load_adapter(again, save_adapter(model, folder))
    own, others = trainable_parameters(model), trainable_parameters(again)
    assert [(name, tensor.tolist()) for name, tensor in others.items()] == [(n, t.tolist()) for n, t in own.items()]
    assert [a_step(again) for _ in range(3)] == [a_step(model) for _ in range(3)]


@pytest.mark.parametrize("case", MADE)
def test_training_continues_from_a_file(case, tmp_path):
    base = tiny_model("llama", torch.float32)
    goes_on(attach(base, MADE[case], seed=3), tiny_model("llama", torch.float32), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("architecture", "task", "case"),
    [(*where, case) for where in TASKS[1:] for case in NETWORKS] + [("roberta", "sequence_classification", "v2 mlp")],
)
def test_training_of_reparameterised_prompts_continues_for_every_task(architecture, task, case, tmp_path):
    """Prompts behind a class token have files that only peftly reads; those of an encoder-decoder have two parts."""
    bases = [tiny_model(architecture, torch.float32, task=task) for _ in range(2)]
    config = MADE[case] if case in MADE else PTuningV2(num_virtual_tokens=3, projection=True, projection_dim=5)
    goes_on(attach(bases[0], config, seed=3), bases[1], tmp_path / "adapter")


@pytest.mark.parametrize("case", ["p_tuning mlp", "prefix_tuning mlp", "prompt_tuning residual"])
def test_a_prompt_works_without_the_network_that_produced_it(case, tmp_path):
    model = attach(tiny_model("llama", torch.float32), MADE[case])
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "training.safetensors").unlink()
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert list(attached(again)["default"].parameters()) == ["prompt_embeddings"]
    save_adapter(again, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "training.safetensors").exists()


def test_the_training_file_of_another_adapter_is_refused(tmp_path):
    save_adapter(attach(tiny_model("llama", torch.float32), MADE["p_tuning lstm"]), tmp_path / "lstm")
    save_adapter(attach(tiny_model("llama", torch.float32), MADE["p_tuning mlp"]), tmp_path / "mlp")
    (tmp_path / "lstm" / "training.safetensors").replace(tmp_path / "mlp" / "training.safetensors")
    without_checksums(tmp_path / "mlp")
    model = tiny_model("llama", torch.float32)
    with pytest.raises(AdapterError, match=r"training.safetensors does not fit this p_tuning adapter"):
        load_adapter(model, tmp_path / "mlp")
    assert attached(model) == {}


def test_the_card_names_the_labels_in_the_order_of_the_outputs():
    card = adapter_card("some/base", METHODS["lora"].config(), labels=["World", "Sports", 'a "b"\n'])
    assert (
        'Labels, by the number of the output (`id2label`):\n\n0. `"World"`\n1. `"Sports"`\n2. `"a \\"b\\"\\n"`\n'
        in card
    )
    assert "id2label" not in adapter_card("some/base", METHODS["lora"].config())


def test_a_base_with_an_infinite_setting_and_without_heads_is_saved(tmp_path):
    """Mamba 2 has no attention, and its longest time step is infinite."""
    config = transformers.Mamba2Config(
        vocab_size=20, hidden_size=16, num_heads=4, head_dim=8, num_hidden_layers=1, state_size=4, n_groups=1
    )
    assert float("inf") in config.time_step_limit
    for number, method in enumerate((LoRA(rank=2), PromptTuning(num_virtual_tokens=2, init="random"))):
        base = transformers.Mamba2ForCausalLM(config).eval()
        model = attach(copy.deepcopy(base), method)
        perturb(trainable_parameters(model).values())
        save_adapter(model, tmp_path / str(number))
        ids = torch.tensor([[3, 4, 5]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_adapter(base, tmp_path / str(number))
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
