"""Bases are found by their names and opened; no test needs a network."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import transformers
from transformers.utils import logging

from peftly import LoRA, attach, save_adapter
from peftly.errors import BaseModelError
from peftly.models.loading import load_base
from peftly.utils.hardware import resolve_device, resolve_dtype
from peftly.utils.quiet import quiet


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smollm-135m", "did you mean 'smollm2-135m'"),
        ("MiniLM-L6", "did you mean 'minilm-l6'"),
        ("", "there is no base ''"),
        ("./no/such/folder", "give a folder, a .gguf file, a Hub id, or smollm2-135m or minilm-l6"),
        ("some/where/else", "there is no base 'some/where/else'"),
        ("missing.gguf", "there is no base 'missing.gguf'"),
        ("what is this?", "there is no base 'what is this\\?'"),
        (__file__, "is a file: a base is"),
    ],
)
def test_spec_that_names_no_base(spec, message):
    with pytest.raises(BaseModelError, match=message):
        load_base(spec)


@pytest.mark.parametrize(("offline", "message"), [(False, "the Hub does not answer: check"), (True, "HF_HUB_OFFLINE")])
def test_hub_out_of_reach(offline, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    started = time.monotonic()
    with pytest.raises(BaseModelError, match=message) as caught:
        load_base("nobody/nothing-of-this-name")
    assert "HF_ENDPOINT" in str(caught.value)
    assert "smollm2-135m" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.fixture
def hub_snapshot(tiny_llama_folder, tmp_path, monkeypatch) -> Path:
    """The tiny llama in the Hub's cache, as `some/tiny`."""
    snapshot = tmp_path / "hub" / "models--some--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_llama_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_hub_model_in_the_cache_opens_without_the_hub(hub_snapshot):
    model, tokenizer = load_base("some/tiny")
    assert model.config.name_or_path == model.name_or_path == tokenizer.name_or_path == "some/tiny"


def test_hub_model_with_pickled_weights_is_refused(hub_snapshot):
    weights = transformers.LlamaForCausalLM.from_pretrained(hub_snapshot).state_dict()
    (hub_snapshot / "model.safetensors").unlink()
    torch.save(weights, hub_snapshot / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"some/tiny has only pickled weights .*allow_pickle=True"):
        load_base("some/tiny")
    assert load_base("some/tiny", allow_pickle=True).model.name_or_path == "some/tiny"


@pytest.fixture
def folder(tiny_llama_folder, tmp_path) -> Path:
    """A copy of the tiny llama that a test may change."""
    return Path(shutil.copytree(tiny_llama_folder, tmp_path / "spoiled"))


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"it has no config\.json"):
        load_base(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"is an adapter, not a base: open it with peftly\.load"):
        load_base(str(folder))


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="holds no weights"):
        load_base(str(folder))


def test_damaged_weights_give_one_line(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(BaseModelError, match="cannot be opened") as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


class _Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_only_on_request_and_never_code(folder, tmp_path):
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pytorch_model\.bin.*allow_pickle=True"):
        load_base(str(folder))
    opened = load_base(str(folder), dtype="float32", allow_pickle=True).model
    for name, weight in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight)
    torch.save(model.state_dict() | {"payload": _Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="cannot be opened"):
        load_base(str(folder), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_class_is_the_one_that_the_config_names(folder):
    change_config(folder, architectures=["LlamaModel"])
    assert type(load_base(str(folder)).model) is transformers.LlamaModel
    change_config(folder, architectures=None)
    assert type(load_base(str(folder)).model) is transformers.LlamaForCausalLM


@pytest.mark.parametrize("named", ["TheirOwnModel", "AutoModel", "LlamaConfig"])
def test_class_that_transformers_does_not_have(folder, named):
    (folder / "modeling_own.py").write_text("raise SystemExit('executed')")
    change_config(folder, architectures=[named], auto_map={"AutoModelForCausalLM": "modeling_own.TheirOwnModel"})
    with pytest.raises(BaseModelError, match=f"is a {named}, which transformers .* code .* is never run"):
        load_base(str(folder))


def test_remote_code_is_never_run(folder):
    (folder / "configuration_own.py").write_text("raise SystemExit('executed')")
    change_config(folder, model_type="their-own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(BaseModelError, match="cannot be opened"):
        load_base(str(folder))


def test_missing_weights_are_reported(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"no weights for model\.norm\.weight: they are random"):
        load_base(str(folder))


def test_pad_token_falls_back_to_the_end_token(folder):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    _, tokenizer = load_base(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == load_base(str(folder)).model.get_input_embeddings().num_embeddings
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(BaseModelError, match="neither a pad nor an end token"):
        load_base(str(folder))


def test_dtype_names(monkeypatch, tiny_llama_folder):
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(name) is resolve_dtype(getattr(torch, name)) is getattr(torch, name)
    assert load_base(str(tiny_llama_folder), dtype="float16").model.dtype is torch.float16
    for wrong in ("fp8", "double", torch.int8, None):
        with pytest.raises(BaseModelError, match="is not one of auto, float32, bfloat16, float16"):
            resolve_dtype(wrong)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_f": True, "avx2": True, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_is_one_that_the_cpu_computes_in(monkeypatch, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", "cpu") is expected


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert resolve_device() == torch.device("cpu")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    for wrong, message in (("cuda:1", "torch sees 1 CUDA"), ("gpu", "is not a device")):
        with pytest.raises(BaseModelError, match=message):
            resolve_device(wrong)


def test_quantization_without_bitsandbytes_names_the_extra(tiny_llama_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("nf4", "fp4", "int8"):
        with pytest.raises(BaseModelError, match=r"pip install 'peftly\[quant\]'"):
            load_base(str(tiny_llama_folder), quantization=name)
    with pytest.raises(BaseModelError, match="'q4' is not one of nf4, fp4, int8"):
        load_base(str(tiny_llama_folder), quantization="q4")


def test_loading_prints_nothing_and_restores_the_log_settings(tiny_llama_folder, capfd):
    logging.enable_progress_bar()
    before = logging.get_verbosity(), True
    load_base(str(tiny_llama_folder))
    assert capfd.readouterr() == ("", "")
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_base_by_its_path_has_a_text_for_its_name(tiny_llama_folder, tmp_path):
    model = load_base(Path(tiny_llama_folder)).model
    assert model.name_or_path == model.config.name_or_path == str(tiny_llama_folder)
    save_adapter(attach(model, LoRA(rank=2)), tmp_path)  # JSON has no paths
