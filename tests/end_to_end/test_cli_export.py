"""`peftly export`: the commands of its page, their output, and errors in one line."""

import re
import shlex
from pathlib import Path

import pytest
from commands import Peftly
from page_blocks import blocks, command_lines
from tiny import perturb

from peftly import LoRA, PromptTuning, attach, load_base, save_adapter, trainable_parameters
from peftly.exporting import FORMATS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
WRITTEN = {
    "out/peft": {"README.md", "adapter_config.json", "adapter_model.safetensors"},
    "out/tweets": {"README.md", "adapter_config.json", "adapter_model.safetensors"},
    "out/gguf": {"gguf-f16.gguf"},
    "out/lora": {"lora-f32.gguf"},
    "out/embeddings": {"README.md", "prompt_embeddings.pt", "prompt_embeddings.safetensors"},
    "out/base": {"base-q8_0.gguf"},
}


@pytest.fixture(scope="module", name="here")
def _here(tmp_path_factory, tiny_llama_folder):
    """A folder with two runs, of which an export reads only the adapters."""
    here = tmp_path_factory.mktemp("exports")
    for name, config in (("tweets", LoRA()), ("prompt", PromptTuning(num_virtual_tokens=4))):
        model, tokenizer = load_base(str(tiny_llama_folder))
        attach(model, config, tokenizer=tokenizer)
        perturb(trainable_parameters(model).values())
        save_adapter(model, here / "runs" / name / "adapter")
    return here


def test_the_commands_of_its_page(here, peftly: Peftly, tiny_llama_folder, monkeypatch):
    monkeypatch.chdir(here)
    page = PAGE.read_text(encoding="utf-8")
    commands = [line for block in blocks(page) if block.language == "bash" for line in command_lines(block.code)]
    commands = [line for line in commands if line.startswith("peftly export ")]
    assert len(commands) == len(WRITTEN)
    for command in commands:
        words = [str(tiny_llama_folder) if word == "smollm2-135m" else word for word in shlex.split(command)[1:]]
        outcome = peftly(*words)
        assert (outcome.code, outcome.err) == (0, ""), command
        out = words[words.index("--out") + 1]
        assert {path.name for path in (here / out).iterdir()} == {*WRITTEN[out], ".peftly.json"}
        assert outcome.out.startswith(f"wrote {here / out}\n")
        if "vllm" in words:
            expected = (
                f"serve it: vllm serve {tiny_llama_folder} --enable-lora --max-lora-rank 8 --lora-modules tweets="
            )
            assert expected + str(here / out) in outcome.out
    assert set(re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)) == FORMATS.keys()
    assert {path.name for path in here.rglob(".*")} == {".peftly.json"}


def test_a_gguf_file_is_a_base(here, peftly: Peftly):
    assert peftly("export", here / "runs/tweets", "--to", "gguf", "--out", here / "full", "--dtype", "f32").code == 0
    file = here / "full" / "full-f32.gguf"
    outcome = peftly("generate", "--base", file, "--prompt", "What time", "--max-new-tokens", "5")
    assert outcome.code == 0, outcome.err  # transformers shows a bar while it unpacks
    assert outcome.out.strip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["runs/prompt", "--to", "vllm", "--out", "nothing/deep"], ["vLLM takes LoRA only", "--to prompt-embeddings"]),
        (["runs/prompt", "--to", "gguf"], ["prompt_tuning cannot be merged"]),
        (["runs/tweets", "--to", "onnx"], ["'onnx'", "peft, vllm, prompt-embeddings, gguf, gguf-lora"]),
        (["runs/tweets", "--to", "gguf", "--dtype", "q4"], ["'q4'", "f16, bf16, f32, q8_0"]),
        (["runs/tweets", "--to", "peft", "--dtype", "f16"], ["gguf and gguf-lora only"]),
        (["runs/nothing", "--to", "peft"], ["runs/nothing"]),
        (["runs", "--to", "peft"], ["runs", "prompt, tweets"]),
        (["runs/tweets"], ["--to"]),
        (["runs/tweets", "--to", "peft", "--out", "/dev/null/out"], ["/dev/null is a file"]),
    ],
)
def test_mistakes_are_one_line(here, peftly: Peftly, monkeypatch, options, words):
    monkeypatch.chdir(here)
    outcome = peftly("export", *([] if "--out" in options else ["--out", "nothing"]), *options)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    for word in words:
        assert word in outcome.err
    assert not (here / "nothing").exists()
