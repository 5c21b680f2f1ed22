"""A base that has changed since the training of an adapter: one line on standard error, and the command goes on."""

import json
import shutil

from peftly import LoRA, attach, load_base, save_adapter


def test_a_changed_base_is_reported(peftly, tiny_llama_folder, tmp_path):
    base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    adapter = save_adapter(attach(load_base(str(base)).model, LoRA(rank=2)), tmp_path / "adapter")
    words = ["generate", adapter, "--prompt", "the", "--max-new-tokens", "2"]
    assert peftly(*words).err == ""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))
    outcome = peftly(*words)
    assert outcome.code == 0
    assert outcome.err == (
        f"warning: {adapter} was trained over another base than this one: rms_norm_eps is 0.01 and was 1e-06; its "
        "answers are not those of its training\n"
    )
