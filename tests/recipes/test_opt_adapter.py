"""The recipe of a published OPT adapter, on a stand-in with pickled weights that the recipe writes."""

import importlib
import os
import pickle
import sys
from pathlib import Path

import pytest

import peftly as library


@pytest.fixture(name="stand_in")
def _stand_in(tmp_path):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        importlib.import_module("recipe_opt_adapter").write_stand_in(tmp_path)
    finally:
        sys.path.pop(0)
    return tmp_path


def test_the_script(example, stand_in):
    module = example("opt_adapter")
    module.ADAPTER, module.BASE = str(stand_in / "opt-350m-lora"), str(stand_in / "opt-350m")
    texts = module.main(str(stand_in / "run"), new_tokens=8)
    assert texts["with the adapter"] != texts["base"]
    assert texts["merged"] == texts["with the adapter"]
    written = stand_in / "run" / "peft"
    assert module.in_safetensors(str(written), stand_in / "unused") == str(written)


def test_by_the_commands(peftly, stand_in):
    adapter, base = stand_in / "opt-350m-lora", stand_in / "opt-350m"
    refused = peftly("generate", adapter, "--prompt", "Bread")
    assert refused.code == 2
    assert "pickle" in refused.err
    assert "convert" in refused.err
    assert peftly("convert", adapter, stand_in / "adapter").code == 0
    pickled_base = peftly("generate", stand_in / "adapter", "--base", base, "--prompt", "Bread")
    assert pickled_base.code == 2
    assert "allow_pickle" in pickled_base.err
    model, tokenizer = library.load_base(base, allow_pickle=True, dtype="float32")
    model.save_pretrained(stand_in / "opt")
    tokenizer.save_pretrained(stand_in / "opt")
    moved = ["--base", stand_in / "opt"]
    assert peftly("generate", stand_in / "adapter", *moved, "--prompt", "Bread", "--max-new-tokens", 3).code == 0
    assert peftly("merge", stand_in / "adapter", *moved, "--out", stand_in / "merged").code == 0
    assert peftly("export", stand_in / "adapter", *moved, "--to", "vllm", "--out", stand_in / "vllm").code == 0


def test_a_pickle_with_code_is_refused_and_not_run(peftly, stand_in):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(stand_in / "was-run"),)

    (stand_in / "opt-350m-lora" / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    outcome = peftly("convert", stand_in / "opt-350m-lora", stand_in / "adapter")
    assert outcome.code == 2
    assert not (stand_in / "was-run").exists()
    assert not (stand_in / "adapter").exists()
