"""Adapters with pickled weights, as PEFT wrote them until 2023, in folders and on the Hub."""

import os
import shutil
from fnmatch import fnmatch

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny import perturb, tiny_model

import peftly.peft as ours
from peftly.errors import AdapterError
from peftly.peft import state_dict


@pytest.fixture
def pickled(tmp_path):
    """Adapter of PEFT whose weights are a pickle, and the logits of it."""
    model = peft.get_peft_model(tiny_model("opt"), peft.LoraConfig(task_type="CAUSAL_LM"))
    perturb(value for value in model.parameters() if value.requires_grad)
    folder = tmp_path / "old"
    model.save_pretrained(folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder, logits(model)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 9, 30]])).logits


@pytest.mark.parametrize("where", ["folder", "hub", "subfolder"])
def test_pickled_weights_are_opened(where, pickled, tmp_path, monkeypatch):
    folder, expected = pickled
    before = sorted(path.name for path in folder.iterdir())
    fetched = []

    def snapshot_download(model_id, allow_patterns, **_settings):
        target = tmp_path / "cache"
        for path in folder.iterdir():
            name = f"lora/{path.name}" if where == "subfolder" else path.name
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                fetched.append(path.name)
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return str(target)

    monkeypatch.setattr(state_dict, "snapshot_download", snapshot_download)
    settings = {"subfolder": "lora"} if where == "subfolder" else {}
    model = ours.PeftModel.from_pretrained(tiny_model("opt"), folder if where == "folder" else "user/old", **settings)
    torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert ("adapter_model.bin" in fetched) == (where != "folder")


def test_code_in_a_pickle_is_refused(pickled, tmp_path):
    folder, _expected = pickled

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Malicious()}, folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin"):
        ours.PeftModel.from_pretrained(tiny_model("opt"), folder)
    assert not (tmp_path / "ran").exists()
