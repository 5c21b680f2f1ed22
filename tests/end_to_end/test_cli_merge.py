"""`peftly merge`: runs and adapters become models of plain transformers, and errors in one line."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers as tf
from commands import Peftly
from tiny import perturb

from peftly import LoRA, attach, generate, load, load_base, save_adapter, trainable_parameters
from peftly.inference.generation import greedy_settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
PROMPTS = ["Where is my parcel?", "The train was late again and", "thanks for the quick reply, all sorted"]


def adapter_of(base, folder, *, seed=1, scale=0.05, **settings):
    model, _ = load_base(str(base), dtype="float32")
    attach(model, LoRA(rank=4, **settings))
    perturb(trainable_parameters(model).values(), scale=scale, seed=seed)
    return save_adapter(model, folder)


@pytest.fixture(name="here")
def _here(tmp_path, monkeypatch, tiny_llama_folder):
    monkeypatch.chdir(tmp_path)
    adapter_of(tiny_llama_folder, tmp_path / "adapters" / "a")
    adapter_of(tiny_llama_folder, tmp_path / "adapters" / "b", seed=2, target_modules=("q_proj", "up_proj"))
    return tmp_path


def test_smollm2_writes_the_same_merged(peftly: Peftly, tmp_path):
    adapter = adapter_of("smollm2-135m", tmp_path / "adapter", scale=0.01)
    merged, texts, report = tmp_path / "merged", tmp_path / "texts.txt", tmp_path / "report.json"
    texts.write_text("\n".join(PROMPTS[:2]))
    outcome = peftly("merge", adapter, "--out", merged, "--dtype", "float32", "--text", texts, "--report", report)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"greedy continuation is equal +│ 2 of 2", outcome.out)
    found = json.loads(report.read_text())
    assert (found["complaint"], found["dtype"]) == (None, "float32")
    assert max(found["relative"], found["rounding"]) < 1e-5
    unmerged, tokenizer = load(adapter, dtype="float32")
    expected = generate(unmerged, tokenizer, PROMPTS, max_new_tokens=8)
    model = tf.AutoModelForCausalLM.from_pretrained(merged)
    tokenizer = tf.AutoTokenizer.from_pretrained(merged)
    for prompt, text in zip(PROMPTS, expected, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        settings = greedy_settings(model, tokenizer)
        with torch.no_grad():
            written = model.generate(**ids, generation_config=settings, max_new_tokens=8)
        assert tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text
    assert {"LICENSE", "NOTICE"} <= {file.name for file in merged.iterdir()}
    assert "license: apache-2.0" in (merged / "README.md").read_text()


def test_a_run_is_compared_on_its_test_examples(peftly: Peftly, here, tweets, tiny_llama_folder):
    flags = ["--base", tiny_llama_folder, "--data", tweets, "--test", tweets, "--method", "lora"]
    assert peftly("train", *flags, "--out", "runs/tweets", "--epochs", "1").code == 0
    commands = re.findall(r"^peftly (merge .+)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    outcomes = [peftly(*shlex.split(command)) for command in commands]
    assert [(outcome.code, outcome.err) for outcome in outcomes] == [(0, ""), (0, "")]
    assert "comparing on 8 test examples of the run" in outcomes[0].out
    assert "texts of peftly's sample data, as the adapter is not in a run folder" in outcomes[1].out
    for folder in ("merged/tweets", "merged/both"):
        assert type(tf.AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    tweets.rename(tweets.with_suffix(".away"))
    try:
        outcome = peftly("merge", "runs/tweets", "--out", "merged/again")
    finally:
        tweets.with_suffix(".away").rename(tweets)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"comparing on 8 texts of peftly's sample data, as .*tweets\.jsonl", outcome.out)


def test_the_python_of_the_page(here, tiny_llama_folder):
    *_, block = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "merging.md", "exec"), {})
    assert (here / "merged" / "a" / "config.json").is_file()
    assert (here / "adapters" / "four" / "adapter_config.json").is_file()


def test_the_options_of_the_page_are_those_of_the_command(peftly: Peftly):
    shown = {"--out", *re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE)}
    outcome = peftly("merge", "--help")
    there = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", outcome.out)) - {"--help"}
    assert shown == there


MISTAKES = {
    "nothing there": (["nothing"], "nothing holds no adapter"),
    "no out": (["adapters/a"], "--out"),
    "a dtype": (["adapters/a", "--out", "m", "--dtype", "int4"], "'int4' is not one of"),
    "no dtype": (["adapters/a", "--out", "m", "--dtype", ""], "dtype='' is not one of"),
    "twice": (["adapters/a", "./adapters/a", "--out", "m"], "are one adapter"),
    "weights": (["adapters/a", "adapters/b", "--out", "m", "--weights", "a,b"], "give numbers with commas"),
    "a report": (["adapters/a", "--out", "m", "--report", "no/where.json"], "there is no folder no"),
    "a file": (["adapters/a", "--out", "adapters/a/README.md"], "is a file"),
    "another folder": (["adapters/a", "--out", "adapters", "--overwrite"], "files that are not part of a merged model"),
    "too many": (["adapters/a", "adapters/b", "--out", "m", "--weights", "1"], "1 were given for 2"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(peftly: Peftly, here, case):
    arguments, words = MISTAKES[case]
    before = sorted(here.rglob("*"))
    outcome = peftly("merge", *arguments, *(["--out", "m"] if case == "nothing there" else []))
    assert outcome.code == 2
    assert (len(outcome.err.splitlines()), outcome.err[:7]) == (1, "error: ")
    assert words in outcome.err
    assert sorted(here.rglob("*")) == before
