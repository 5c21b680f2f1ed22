"""The page about scripts of PEFT: its script runs, and the names that it lists exist."""

import re
from pathlib import Path

import peftly.peft as ours
from peftly.peft import helpers

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "peft.md").read_text(encoding="utf-8")


def test_its_script(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_llama_folder)), "peft.md", "exec"), {})
    assert capsys.readouterr().out.startswith("trainable params: ")
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_its_names():
    rows = dict(
        re.findall(
            r"^\| ([^|]+) \| (`[^|]+) \|$",
            PAGE[PAGE.index("## What there is") : PAGE.index("## The model is")],
            re.MULTILINE,
        )
    )
    owners = {"methods of a model": ours.PeftModel, "`peftly.peft.helpers`": helpers}
    assert len(rows) == 5
    for title, names in rows.items():
        owner = owners.get(title, ours)
        listed = re.findall(r"`(\w+)(?:…)?`", names)
        assert len(listed) >= 2
        for name in listed:
            name = f"{name}CausalLM" if name.endswith("For") else name
            assert hasattr(owner, name), (title, name)
