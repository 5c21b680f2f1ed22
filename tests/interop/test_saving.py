"""`save_pretrained` and `push_to_hub` of adapted models, with a stand-in of the Hub."""

import fnmatch
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from huggingface_hub import HfApi, ModelCard
from references import CELLS, adapted, of_each_kind
from safetensors.torch import load_file
from tiny import perturb, random_token_ids, tiny_model

from peftly import IA3, LoRA, attach, detach, load_adapter, trainable_parameters
from peftly.errors import AdapterError, MethodError

IDS = torch.tensor(random_token_ids([8, 8]))
WEIGHTS = "adapter_model.safetensors"
FILES = {WEIGHTS, "adapter_config.json", "peftly.json", "README.md"}
TOKEN = "hf_SecretSecretSecretSecretSecretSecret"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand-in of the Hub: repositories are folders, and the settings of every call are noted."""
    root, calls = tmp_path / "hub", []

    def create_repo(self, repo_id, **settings):
        calls.append(("create_repo", repo_id, settings))
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns=None, ignore_patterns=None, **settings):
        calls.append(("upload_folder", repo_id, settings))
        folder = Path(folder_path)
        for file in [file for file in folder.rglob("*") if file.is_file()]:
            path = str(file.relative_to(folder))
            is_allowed = allow_patterns is None or any(fnmatch.fnmatch(path, each) for each in allow_patterns)
            if is_allowed and not any(fnmatch.fnmatch(path, each) for each in ignore_patterns or ()):
                target = root / repo_id / (settings.get("path_in_repo") or "") / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        return SimpleNamespace(done=lambda: True, exception=lambda: None, repo_url=SimpleNamespace(repo_id=repo_id))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "create_branch", lambda self, repo_id, **settings: calls.append(("branch", settings)))
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, file, **settings: (root / repo_id / file).exists())
    return SimpleNamespace(root=root, calls=calls)


def files(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


LLAMA = [method for architecture, method in CELLS if architecture == "llama"]


def test_only_the_main_process_writes(tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    model.save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert not (tmp_path / "adapter").exists()
    model.save_pretrained(tmp_path / "adapter", is_main_process=True, save_function=torch.save)
    assert files(tmp_path / "adapter") == FILES


@pytest.mark.parametrize("method", of_each_kind(LLAMA))
def test_a_state_dict_gives_the_values(method, tmp_path):
    model, _ = adapted("llama", method, torch.float32)
    expected, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    perturb(trainable_parameters(model).values(), seed=7)
    now = logits(model)
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(logits(model), now), "the model keeps its own values"
    load_adapter(detach(model), tmp_path)
    assert torch.equal(logits(model), expected)


def test_a_state_dict_without_a_parameter_is_refused(tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    with pytest.raises(MethodError, match=r"state_dict lacks model\.layers\.0.*lora_a.*pass model\.state_dict\(\)"):
        model.save_pretrained(tmp_path / "adapter", state_dict={})
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"variant": "fp16"}, "variant='fp16'"),
        ({"safe_serialization": False}, "safe_serialization=False"),
        ({"save_peft_format": False}, "save_peft_format=False"),
        ({"distributed_checkpoint": True}, "distributed_checkpoint=True"),
        ({"max_shard_size": "1KB"}, "max_shard_size='1KB' allows less"),
        ({"selected_adapters": ["default"]}, "no setting selected_adapters"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused_in_one_line(settings, text, tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    with pytest.raises(AdapterError) as refused:
        model.save_pretrained(tmp_path / "adapter", **settings)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "adapter").exists()


def test_settings_at_their_defaults_are_taken(tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    model.save_pretrained(tmp_path, variant=None, safe_serialization=True, max_shard_size="5GB", token=None)
    assert files(tmp_path) == FILES


def test_save_pretrained_pushes_the_adapter_alone(hub, tmp_path, caplog, capfd):
    model, _ = adapted("llama", "lora", torch.float32)
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "secret.env").write_text(TOKEN)
    with caplog.at_level(logging.DEBUG):
        model.save_pretrained(folder, push_to_hub=True, token=TOKEN, commit_message="first", private=True)
    assert files(hub.root) == {f"me/my-adapter/{name}" for name in FILES}
    assert files(folder) == FILES | {"secret.env"}
    (_, name, created), (_, _, uploaded) = hub.calls
    assert (name, created["private"], created["token"]) == ("my-adapter", True, TOKEN)
    assert (uploaded["commit_message"], uploaded["token"]) == ("first", TOKEN)
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())
    assert not any(TOKEN.encode() in (hub.root / name).read_bytes() for name in files(hub.root))


def test_push_to_hub_uploads_every_adapter_and_keeps_the_card_of_the_repository(hub):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=2), name="a")
    attach(model, IA3(), name="b")
    model.add_model_tags(["dpo"])
    model.push_to_hub("you/both", tags=["tiny"], revision="dev", commit_description="two of them")
    assert files(hub.root / "you/both") == {f"{name}/{file}" for name in "ab" for file in FILES}
    assert {"peftly", "dpo", "tiny"} <= set(ModelCard.load(hub.root / "you/both/a/README.md").data.tags)
    assert ("branch", {"branch": "dev", "token": None, "exist_ok": True}) in hub.calls
    detach(model, "a")
    (hub.root / "you/both/README.md").write_text("mine")
    model.push_to_hub("you/both")
    assert (hub.root / "you/both/README.md").read_text() == "mine"
    other = load_adapter(tiny_model("llama", torch.float32), hub.root / "you/both")
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(AdapterError, match="no setting use_temp_dir"):
        model.push_to_hub("you/both", use_temp_dir=True)


def test_pushing_a_base_is_as_before_once_the_adapter_is_off():
    model, _ = adapted("llama", "lora", torch.float32)
    detach(model)
    assert "push_to_hub" not in vars(model)
    assert "save_pretrained" not in vars(model)


def test_trainer_pushes_a_usable_adapter(hub, tmp_path, caplog):
    model, _ = adapted("llama", "lora", torch.float32)
    text = random_token_ids([8])[0]
    arguments = tf.TrainingArguments(
        str(tmp_path / "run"), max_steps=2, save_steps=1, push_to_hub=True, hub_token=TOKEN, hub_model_id="me/trained",
        report_to=[], use_cpu=True, disable_tqdm=True, hub_strategy="checkpoint",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        training = tf.Trainer(model, arguments, train_dataset=[{"input_ids": text, "labels": text}] * 4)
        training.train()
        training.push_to_hub()
    assert TOKEN not in caplog.text
    pushed = hub.root / "me/trained"
    loaded = load_adapter(tiny_model("llama", torch.float32), pushed)
    assert torch.equal(logits(loaded), logits(model))
    card = ModelCard.load(pushed / "README.md")
    assert card.data.library_name == "peft"
    assert {"peftly", "lora", "generated_from_trainer"} <= set(card.data.tags)
    assert (pushed / "last-checkpoint" / "trainer_state.json").is_file()
    resumed = tf.Trainer(model, arguments, train_dataset=[{"input_ids": text, "labels": text}] * 4)
    resumed.train(resume_from_checkpoint=str(pushed / "last-checkpoint"))
    assert json.loads((pushed / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert load_file(pushed / WEIGHTS)
