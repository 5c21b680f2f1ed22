"""The files of an adapter belong together: a change of any of them is noticed when the adapter is opened."""

import json
import shutil

import pytest
import torch
from adapter_files import edit_config, edit_notes, without_checksums
from references import ARCHITECTURE_OF, DEFAULTS
from safetensors.torch import load_file, save_file
from tiny import perturb, tiny_model

from peftly import (
    AdapterConfig,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Selective,
    attach,
    attached,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import AdapterError
from peftly.methods import METHODS

IDS = torch.tensor([[5, 6, 7, 8]])
CONFIG, NOTES = "adapter_config.json", "peftly.json"
TENSORS, TRAINING = "adapter_model.safetensors", "training.safetensors"
NETWORK = PTuning(num_virtual_tokens=3, encoder="lstm", encoder_dim=4)


def saved(config, folder, architecture="llama", seed=1):
    model = attach(tiny_model(architecture, torch.float32), config, seed=seed)
    perturb(trainable_parameters(model).values(), seed=seed)
    return save_adapter(model, folder)


def logits(folder, architecture="llama"):
    return load_adapter(tiny_model(architecture, torch.float32), folder)(IDS).logits


def refused(folder, match):
    model = tiny_model("llama", torch.float32)
    with pytest.raises(AdapterError, match=match) as caught:
        load_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert attached(model) == {}


def rewrite(path, **changes):
    """Change entries of a JSON file and nothing else."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("config", [LoRA(rank=2), NETWORK], ids=["lora", "p_tuning"])
def test_one_flipped_bit_is_noticed_or_changes_nothing(config, tmp_path):
    folder = saved(config, tmp_path / "adapter")
    expected, noticed = logits(folder), {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        positions = range(0, len(content), max(1, len(content) // 40))
        for number, position in enumerate(positions):
            damaged = bytearray(content)
            damaged[position] ^= 1 << number % 8
            path.write_bytes(damaged)
            try:
                changed = not torch.equal(logits(folder), expected)
            except AdapterError:
                noticed[path.name] = noticed.get(path.name, 0) + 1
            else:
                assert not changed, f"{path.name}, byte {position}"
        path.write_bytes(content)
        if path.suffix == ".safetensors":
            assert noticed[path.name] == len(positions)
    assert noticed[CONFIG] > 20
    assert noticed[NOTES] > 35, "flips in the layout of a JSON file may be harmless"
    assert "README.md" not in noticed


def test_a_file_of_another_adapter_is_noticed(tmp_path):
    one, other = (saved(NETWORK, tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other")))
    for name in (TENSORS, TRAINING):
        shutil.copy(other / name, one / name)
        refused(one, rf"one/{name} is not the file that .*one/peftly\.json was saved with; copy the adapter again or,")
        shutil.copytree(saved(NETWORK, tmp_path / "again", seed=0), one, dirs_exist_ok=True)
    rank = saved(LoRA(rank=2), tmp_path / "rank")
    shutil.copy(saved(LoRA(rank=3), tmp_path / "ranks") / CONFIG, rank / CONFIG)
    refused(rank, rf"rank/{CONFIG} is not the file that .*rank/peftly\.json was saved with; .* delete peftly\.json$")
    rewrite(one / NOTES, labels=["a"])
    refused(one, r"one/peftly\.json was changed after it was saved; .* delete its checksums")
    rewrite(one / NOTES, checksums={CONFIG: "0" * 64})
    refused(one, r"one/peftly\.json is damaged: its checksums are incomplete")


def test_a_training_file_that_the_adapter_was_saved_without_is_noticed(tmp_path):
    folder = saved(PTuning(num_virtual_tokens=3), tmp_path / "adapter")
    (folder / TRAINING).unlink()
    expected = logits(folder)
    save_adapter(load_adapter(tiny_model("llama", torch.float32), folder), folder)
    assert torch.equal(logits(folder), expected)
    shutil.copy(saved(PTuning(num_virtual_tokens=3), tmp_path / "other", seed=2) / TRAINING, folder)
    refused(folder, rf"adapter/{TRAINING} is not the file that .* delete peftly\.json and training\.safetensors$")


def test_what_people_edit_is_free(tmp_path):
    folder = saved(LoRA(rank=2), tmp_path / "adapter")
    expected = logits(folder)
    edited = {"base_model_name_or_path": "another", "revision": "main", "inference_mode": False}
    rewrite(folder / CONFIG, **edited, auto_mapping={"base_model_class": "x"}, peft_version="0.18.0")
    (folder / "README.md").write_text("# My adapter")
    (folder / NOTES).write_text(json.dumps(json.loads((folder / NOTES).read_text())))  # another layout
    assert torch.equal(logits(folder), expected)
    assert open_adapters(folder).requirements.base == "another"
    assert "checksums" not in open_adapters(folder).notes, "they are of one folder"


def test_an_adapter_that_peft_saved_over_ours(tmp_path):
    """PEFT replaces two files of the folder and leaves the others."""
    peft = pytest.importorskip("peft")
    folder = saved(LoRA(rank=2), tmp_path / "adapter")
    model = peft.get_peft_model(tiny_model("llama", torch.float32), peft.LoraConfig(r=3, target_modules=["q_proj"]))
    perturb([value for name, value in model.named_parameters() if "lora" in name])
    model.save_pretrained(folder)
    refused(folder, "if another tool such as PEFT saved over it or the change was meant, delete peftly.json")
    (folder / NOTES).unlink()
    torch.testing.assert_close(logits(folder), model.eval()(IDS).logits)


DISAGREEING = {
    "r": (LoRA(rank=8), {"r": 16}),
    "lora_alpha": (LoRA(alpha=3), {"lora_alpha": 4}),
    "use_rslora": (LoRA(), {"use_rslora": True}),
    "bias": (LoRA(), {"bias": "all"}),
    "rank_pattern": (LoRA(rank_pattern={"q_proj": 3}), {"rank_pattern": {}}),
    "alpha_pattern": (LoRA(), {"alpha_pattern": {"q_proj": 3}}),
    "lora_dropout": (LoRA(), {"lora_dropout": 0.5}),
    "r of PiSSA": (LoRA(rank=2, init="pissa"), {"r": 2}),
    "num_virtual_tokens": (PromptTuning(num_virtual_tokens=3, init="random"), {"num_virtual_tokens": 4}),
    "encoder_reparameterization_type": (NETWORK, {"encoder_reparameterization_type": "MLP"}),
    "encoder_hidden_size": (NETWORK, {"encoder_hidden_size": 5}),
    "prefix_projection": (PrefixTuning(projection=True), {"prefix_projection": False}),
    "num_virtual_tokens of a prefix": (PrefixTuning(), {"num_virtual_tokens": 2}),
    "bottleneck_dim": (AdapterConfig(bottleneck_dim=3), {"settings": {"bottleneck_dim": 4}}),
    "last_layers": (Selective(last_layers=1), {"settings": {"last_layers": 2}}),
}


@pytest.mark.parametrize("case", DISAGREEING)
def test_settings_that_disagree_are_named_without_checksums_too(case, tmp_path):
    config, change = DISAGREEING[case]
    folder = saved(config, tmp_path / "adapter")
    written = json.loads((folder / CONFIG).read_text())
    changed = {**written["settings"], **change["settings"]} if "settings" in change else None
    edit_config(folder, **(change if changed is None else {"settings": changed}))
    setting = case.split(" of ")[0]
    refused(
        folder, rf"adapter/peftly\.json and .*/adapter_config\.json disagree: by the first, {setting} is .*, and by"
    )


def test_methods_that_disagree_are_named(tmp_path):
    folder = saved(LoRA(rank=2), tmp_path / "adapter")
    edit_notes(folder, method={"name": "ia3"})
    refused(folder, r"disagree: by the first, method is ia3, and by the second lora; restore the file that was changed")
    edit_notes(folder, method={"name": "new"})
    refused(folder, r"peftly\.json does not describe an adapter: its method is \{'name': 'new'\}")


@pytest.mark.parametrize("method", ARCHITECTURE_OF)
def test_an_adapter_without_checksums_opens(method, tmp_path):
    architecture = ARCHITECTURE_OF[method]
    folder = saved(METHODS[method].config(**DEFAULTS[method]), tmp_path / "adapter", architecture)
    expected = logits(folder, architecture)
    assert torch.equal(logits(without_checksums(folder), architecture), expected)
    (folder / NOTES).unlink()
    for name in (TRAINING, NOTES):
        (folder / name).unlink(missing_ok=True)
    torch.testing.assert_close(logits(folder, architecture), expected)


@pytest.mark.parametrize(
    "config",
    [
        NETWORK,
        PTuning(num_virtual_tokens=3),
        PrefixTuning(num_virtual_tokens=3, projection=True, projection_dim=5),
        PromptTuning(num_virtual_tokens=3, init="random", residual_dim=4),
    ],
    ids=["lstm", "mlp", "prefix", "residual"],
)
def test_parameters_of_another_prompt_are_refused_without_checksums_too(config, tmp_path):
    one, other = (without_checksums(saved(config, tmp_path / name, seed=n)) for n, name in enumerate(("one", "other")))
    tensors = load_file(one / TRAINING)
    # As a network in bf16 computes the prompt.
    prompt = {name: tensor.bfloat16().float() for name, tensor in load_file(one / TENSORS).items()}
    save_file(prompt, one / TENSORS)
    load_adapter(tiny_model("llama", torch.float32), one)
    shutil.copy(other / TRAINING, one / TRAINING)
    refused(one, rf"one/{TRAINING} and .*one/{TENSORS} disagree: the parameters in the first produce other prompt_emb")
    save_file(tensors | {"embedding.weight": 2 * tensors["embedding.weight"]}, one / TRAINING)
    refused(one, "disagree: the parameters in the first produce other prompt_embeddings than the second holds;")
    (one / TRAINING).unlink()
    load_adapter(tiny_model("llama", torch.float32), one)
