"""`peftly combine`: several adapters of one base become one adapter, and errors in one line."""

import json
import re
import shlex
from pathlib import Path

import peft
import pytest
import torch
from adapter_files import edit_notes
from commands import Peftly
from references import assert_close
from safetensors.torch import load_file
from tiny import perturb

from peftly import (
    DoRA,
    LoRA,
    PromptTuning,
    attach,
    load,
    load_adapter,
    load_base,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.adapters.adapter_set import open_adapters

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
SHAPE = {"kind": "label", "template": "{text} Label :", "target": "label", "labels": ["no", "yes"], "pair": None}
OTHER_SHAPE = SHAPE | {"template": "{text} :"}


def adapter_of(base, folder, config, *, seed=1, notes=None):
    model, tokenizer = load_base(str(base), dtype="float32")
    attach(model, config, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), seed=seed)
    return save_adapter(model, folder, notes=notes)


@pytest.fixture(name="here")
def _here(tmp_path, monkeypatch, tiny_llama_folder):
    monkeypatch.chdir(tmp_path)
    some = LoRA(rank=3, target_modules=("q_proj", "up_proj"))
    adapter_of(tiny_llama_folder, "adapters/a", LoRA(rank=4), notes={"row_format": SHAPE})
    adapter_of(tiny_llama_folder, "runs/b/adapter", some, seed=2, notes={"row_format": SHAPE})
    (tmp_path / "adapters" / "b").symlink_to(tmp_path / "runs" / "b" / "adapter")
    return tmp_path


def logits(folder, **settings):
    with torch.no_grad():
        return load(folder, dtype="float32", **settings).model(IDS).logits


def weighted_sum(base, weights):
    """Compare logits with a sum of the updates of each weight."""
    model, _ = load_base(str(base), dtype="float32")
    with torch.no_grad():
        for folder, weight in weights.items():
            config = json.loads((folder / "adapter_config.json").read_text())
            tensors = load_file(folder / "adapter_model.safetensors")
            for name, lora_a in tensors.items():
                if ".lora_A." in name:
                    path = name.removeprefix("base_model.model.").replace(".lora_A", "")
                    scaling = weight * config["lora_alpha"] / config["r"]
                    model.get_parameter(path).add_(scaling * tensors[name.replace("_A.", "_B.")] @ lora_a)
        return model(IDS).logits


def test_the_commands_of_the_page(peftly: Peftly, here, tiny_llama_folder):
    commands = re.findall(r"^peftly (combine adapters/a .+)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    outcomes = [peftly(*shlex.split(command)) for command in commands]
    assert [(outcome.code, outcome.err) for outcome in outcomes] == [(0, ""), (0, "")]
    assert re.fullmatch(r"adapters/sum: LoRA of ranks 4 to 7, [\d,]+ parameters, [\d.]+ KB\n", outcomes[0].out)
    assert re.fullmatch(r"adapters/svd: LoRA of rank 4, .+, [\d.]+% of the sum left out\n", outcomes[1].out)
    a, b = here / "adapters" / "a", here / "adapters" / "b"
    expected = weighted_sum(tiny_llama_folder, {a: 0.7, b: 0.3})
    assert_close(logits("adapters/sum"), expected)
    base = load_base(str(tiny_llama_folder), dtype="float32").model
    with torch.no_grad():
        assert (base(IDS).logits - expected).norm() > 1e-2 * expected.norm()
        assert_close(peft.PeftModel.from_pretrained(base, "adapters/sum")(IDS).logits, expected)
    notes = open_adapters("adapters/sum").notes
    assert (notes["row_format"], set(notes)) == (SHAPE, {"base", "method", "row_format"})
    assert "- 0.7 times adapters/a\n- 0.3 times adapters/b\n" in Path("adapters/sum/README.md").read_text()
    for words in (
        ["generate", "adapters/sum", "--text", "late again", "--max-new-tokens", "3"],
        ["merge", "adapters/sum", "--out", "merged"],
        ["export", "adapters/sum", "--to", "vllm", "--out", "vllm"],
    ):
        assert (outcome := peftly(*words)).code == 0, outcome.err


def test_svd_reports_the_rank_that_it_cuts(peftly: Peftly, here, tiny_llama_folder):
    """Compare with the singular values of the sums."""
    outcome = peftly("combine", "adapters/a", "adapters/b", "--method", "svd", "--rank", "2", "--out", "small")
    base, _ = load_base(str(tiny_llama_folder), dtype="float32")
    both = load("adapters/a", dtype="float32", name="a").model
    merge(load_adapter(both, "adapters/b", name="b"))
    with torch.no_grad():
        rest = length = 0.0
        for path, parameter in both.named_parameters():
            if parameter.ndim == 2:
                values = torch.linalg.svdvals((parameter - base.get_parameter(path)).double())
                rest, length = rest + float((values[2:] ** 2).sum()), length + float((values**2).sum())
    assert f", {(rest / length) ** 0.5:.1%} of the sum left out\n" in outcome.out


def test_one_adapter_is_made_smaller_or_weaker(peftly: Peftly, here, tiny_llama_folder):
    assert peftly("combine", "adapters/a", "--method", "svd", "--rank", "1", "--out", "small").code == 0
    assert json.loads(Path("small/adapter_config.json").read_text())["r"] == 1
    assert peftly("combine", "runs/b", "--weights", "0.5", "--out", "weak").code == 0
    assert_close(logits("weak"), weighted_sum(tiny_llama_folder, {here / "adapters" / "b": 0.5}))


def test_notes_that_differ_between_adapters_are_left_out_and_reported(peftly: Peftly, here, tiny_llama_folder):
    other = adapter_of(tiny_llama_folder, "other", LoRA(rank=2), notes={"row_format": OTHER_SHAPE})
    outcome = peftly("combine", "adapters/a", other, "--out", "sum")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("not saved, as the adapters differ: the row format, so give")
    assert "row_format" not in open_adapters("sum").notes
    assert peftly("generate", "sum", "--prompt", "late again", "--max-new-tokens", "3").code == 0
    outcome = peftly("generate", "sum", "--text", "late again")
    assert (outcome.code, "give the complete prompt: --prompt" in outcome.err) == (2, True)


def test_the_quantisation_of_the_training_is_noted(peftly: Peftly, here):
    """Without bitsandbytes: the quantised base is not opened."""
    noted = {"kind": "nf4", "double": False}
    for folder in (here / "adapters" / "a", here / "adapters" / "b"):
        edit_notes(folder, quantization=noted)
    assert peftly("combine", "adapters/a", "adapters/b", "--out", "sum").code == 0
    assert noted.items() <= open_adapters("sum").notes["quantization"].items()


def test_an_adapter_is_replaced_with_overwrite_only(peftly: Peftly, here):
    words = ["combine", "adapters/a", "adapters/b", "--out", "sum"]
    assert peftly(*words).code == 0
    before = logits("sum")
    assert peftly(*words, "--weights", "1,-1").code == 2
    assert torch.equal(logits("sum"), before)
    assert peftly(*words, "--weights", "1,-1", "--overwrite").code == 0
    assert not torch.equal(logits("sum"), before)


def test_the_options_of_the_page_are_those_of_the_command(peftly: Peftly):
    section = PAGE.partition("## Several adapters")[2].partition("\n## ")[0]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", peftly("combine", "--help").out)) - {"--help"}
    assert options == set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section)) - {"--prompt"}


A, B = "adapters/a", "adapters/b"
MISTAKES = {
    "nothing there": ([A, "nothing"], "nothing holds no adapter"),
    "one": ([A], "adapters/a is one adapter: name another, or give its weight, or a lower rank for svd"),
    "twice": ([A, B, "./adapters/a"], "adapters/a and ./adapters/a are one adapter"),
    "linked": ([A, B, "runs/b"], "adapters/b and runs/b are one adapter"),
    "too few weights": ([A, B, "--weights", "1"], "1 were given for 2 adapters (adapters/a, adapters/b)"),
    "words": ([A, B, "--weights", "a,b"], "give numbers with commas"),
    "no number": ([A, B, "--weights", "1,nan"], "--weights 1,nan: give numbers with commas between them"),
    "no method": ([A, B, "--method", "ties"], "method is linear, or svd with a rank of at least 1; got 'ties'"),
    "a rank for linear": ([A, B, "--rank", "4"], "got 'linear' with rank=4"),
    "no rank": ([A, B, "--method", "svd", "--rank", "0"], "got 'svd' with rank=0"),
    "a prompt": ([A, "prompt"], "'adapter_2': it is prompt_tuning"),
    "dora": ([A, "dora"], "'adapter_2': it is dora"),
    "saved modules": ([A, "saved"], "'adapter_2': it trains a copy in lm_head"),
    "another base": ([A, "foreign"], "foreign for somewhere/else"),
    "another quantisation": ([A, "quantised"], "not trained over the same quantisation"),
    "a file": ([A, B, "--out", "adapters/a/README.md"], "is a file; name a folder"),
    "in a file": ([A, B, "--out", "adapters/a/README.md/sum"], "is a file; choose another folder"),
    "other files": ([A, B, "--out", "adapters", "--overwrite"], "holds files that are not part of an adapter"),
    "one of them": ([A, B, "--out", A, "--overwrite"], "is one of the adapters to combine"),
    "beside a foreign file": (
        [A, B, "--out", "full", "--overwrite"],
        "notes.txt, which is not part of an adapter",
    ),
    "an adapter": ([A, B, "--out", "dora"], "holds an adapter; choose another folder, or replace it with --overwrite"),
}


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.sample(4)
def test_a_mistake_is_one_line(peftly: Peftly, here, tiny_llama_folder, case):
    arguments, words = MISTAKES[case]
    adapter_of(tiny_llama_folder, "prompt", PromptTuning(num_virtual_tokens=2, init="random"))
    adapter_of(tiny_llama_folder, "dora", DoRA(rank=2))
    adapter_of(tiny_llama_folder, "saved", LoRA(rank=2, modules_to_save=("lm_head",)))
    for name in ("foreign", "quantised", "full"):
        adapter_of(tiny_llama_folder, name, LoRA(rank=2))
    foreign = here / "foreign" / "adapter_config.json"
    foreign.write_text(foreign.read_text().replace(str(tiny_llama_folder), "somewhere/else"))
    edit_notes(here / "quantised", quantization={"kind": "int8"})
    (here / "full" / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    outcome = peftly("combine", *arguments, *([] if "--out" in arguments else ["--out", "new/deep"]))
    assert outcome.code == 2, outcome.out
    assert (len(outcome.err.splitlines()), outcome.err[:7]) == (1, "error: ")
    assert words in outcome.err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
