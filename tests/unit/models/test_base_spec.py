"""A base is resolved once: its config and its tokenizer need no weights, and the Hub is asked once."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import peftly.cli
from peftly.errors import BaseModelError
from peftly.models import files
from peftly.models.base_spec import base_config, load_tokenizer, resolve_base, stored_dtype
from peftly.models.loading import load_base
from peftly.runs.config import RunConfig
from peftly.runs.run import open_base_and_data

TEXT = "Where is my parcel? It is 12 days late."


@pytest.fixture
def folder_without_weights(tiny_llama_folder, tmp_path):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def data(tmp_path):
    rows = [{"text": f"message {number}", "label": ("no", "yes")[number % 2]} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_inspect_reads_no_weights(folder_without_weights, data, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("weights"))
    outcome = CliRunner().invoke(
        peftly.cli.app, ["inspect", "--base", str(folder_without_weights), "--data", str(data)]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "task: causal_lm" in outcome.output
    assert "example 3: " in outcome.output


def test_a_tokenizer_without_weights_is_that_of_the_base(tiny_llama_folder, folder_without_weights):
    found, expected = load_tokenizer(str(folder_without_weights)), load_base(str(tiny_llama_folder)).tokenizer
    assert found.name_or_path == str(folder_without_weights)
    assert found(TEXT).input_ids == expected(TEXT).input_ids
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert (found.pad_token, found.special_tokens_map) == (expected.pad_token, expected.special_tokens_map)


def test_a_tokenizer_without_a_pad_token_gets_one(folder_without_weights):
    file = folder_without_weights / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    assert load_tokenizer(str(folder_without_weights)).pad_token == settings["eos_token"]
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(BaseModelError, match="neither a pad nor an end token"):
        load_tokenizer(str(folder_without_weights))


@pytest.fixture
def hub(tiny_llama_folder, tmp_path, monkeypatch):
    """A stand-in for the Hub with the base `some/tiny`: it answers, lists the files and has them in the cache."""
    snapshot = tmp_path / "hub" / "models--some--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_llama_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # transformers reads the cache
    asked = []

    def answers():
        asked.append("answer")
        return True

    def list_repo_files(name):
        asked.append(f"files of {name}")
        return [path.name for path in snapshot.iterdir()]

    monkeypatch.setattr(files, "hub_answers", answers)
    monkeypatch.setattr("huggingface_hub.list_repo_files", list_repo_files)
    return asked


def test_the_hub_is_asked_once_for_a_base(hub):
    base = resolve_base("some/tiny")
    assert (base.name, base.source, base.kind) == ("some/tiny", "some/tiny", "hub")
    assert base_config(base).model_type == "llama"
    assert stored_dtype(base) == "float32"
    first, second = load_base(base), load_base(base)
    assert first.model is not second.model
    assert first.model.config.name_or_path == load_tokenizer(base).name_or_path == "some/tiny"
    assert resolve_base(base) is base
    assert hub == ["answer", "files of some/tiny"]


def test_the_hub_is_asked_once_for_a_run(hub, data, tmp_path):
    config = RunConfig(base="some/tiny", data={"train": str(data)}, method="lora", out=str(tmp_path / "run"))
    _, base, _ = open_base_and_data(config, None, None, lambda _: None)
    assert base.model.name_or_path == "some/tiny"
    assert hub == ["answer", "files of some/tiny"]


def test_a_head_leaves_the_config_of_the_base_alone(tiny_llama_folder):
    base = resolve_base(str(tiny_llama_folder))
    labels = dict(base.config.id2label)
    classifier = load_base(base, task="sequence_classification", labels=("a", "b", "c")).model
    assert classifier.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert base.config.id2label == labels
    assert load_base(base).model.config.architectures == ["LlamaForCausalLM"]


def test_the_size_of_the_weights_is_that_of_their_files(tiny_llama_folder, folder_without_weights, tmp_path):
    whole = (tiny_llama_folder / "model.safetensors").read_bytes()
    assert resolve_base(tiny_llama_folder).weights_bytes() == len(whole)
    assert resolve_base(folder_without_weights).weights_bytes() is None

    shards = shutil.copytree(folder_without_weights, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, size in zip(names, (1000, 500), strict=True):
        (shards / name).write_bytes(bytes(size))
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve_base(shards).weights_bytes() == 1500
    (shards / names[1]).unlink()
    assert resolve_base(shards).weights_bytes() is None

    (tmp_path / "base.gguf").write_bytes(whole)
    assert resolve_base(tmp_path / "base.gguf").weights_bytes() == len(whole)
