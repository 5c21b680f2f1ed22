"""The recipe of Chinese instructions on a tiny base: data, command, checkpoint, answers, script."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import command, environment

import peftly as library

DATA = "examples/data/chinese_instructions.jsonl"
CONFIG = "examples/chinese_instructions.yaml"
FEW = ["--set", "train.max_steps=3", "--set", "baselines=false", "--set", "train.generation_examples=2"]
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
VARIANTS = importlib.import_module("recipe_chinese_instructions").VARIANTS
del sys.path[0]


def read_rows():
    return [json.loads(line) for line in Path(DATA).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def in_root(peftly):
    """The folder of the repository is the working folder, as for the commands of the page."""
    return peftly


def test_the_data_are_300_different_instructions_with_answers(in_root):
    rows = read_rows()
    assert len(rows) == 300
    assert all(list(row) == ["instruction", "input", "output"] for row in rows)
    assert len({(row["instruction"], row["input"]) for row in rows}) == 300
    assert sum(bool(row["input"]) for row in rows) > 150
    for row in rows:
        assert row["instruction"] == row["instruction"].strip() != ""
        assert 0 < len(row["output"]) <= 120
        assert row["output"] == row["output"].strip()
        assert not any(mark in text for mark in ("\ufffd", "\t", "\r") for text in row.values())
        assert any("\u4e00" <= letter <= "\u9fff" for letter in row["instruction"])


@pytest.mark.sample(3)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_by_the_command(variant, peftly, tiny_llama_folder, tmp_path):
    run = tmp_path / "run"
    outcome = peftly("train", CONFIG, "--base", tiny_llama_folder, "--out", run, *FEW, *VARIANTS[variant])
    assert outcome.code == 0, outcome.err
    assert "240 rows" in outcome.out
    assert "60 rows" in outcome.out
    answer = peftly("generate", run, "--text", "考试有哪些技巧？", "--max-new-tokens", 3, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)


def test_a_folder_of_load_from_disk_trains_as_the_file(peftly, example, tiny_llama_folder, tmp_path):
    example("chinese_instructions").save_dataset(tmp_path / "alpaca_data_zh")
    losses = []
    for data in (DATA, tmp_path / "alpaca_data_zh"):
        run = tmp_path / str(len(losses))
        outcome = peftly("train", CONFIG, "--base", tiny_llama_folder, "--data", data, "--out", run, *FEW)
        assert outcome.code == 0, outcome.err
        losses.append(json.loads((run / "evaluation.json").read_text())["loss"])
    assert losses[0] == losses[1]


def test_the_tokens_are_those_of_the_tutorial(in_root, tiny_llama_folder):
    _, tokenizer = library.load_base(tiny_llama_folder)
    rows = read_rows()
    data = library.load_data(rows, tokenizer, format="alpaca-human", max_length=2048, validation="none")
    for row, example in zip(rows, data.train.encoded, strict=True):
        asked = f"Human: {row['instruction']}\n{row['input']}".strip() + "\n\nAssistant: "
        assert tokenizer.decode(example.input_ids) == "".join(
            (tokenizer.bos_token, asked, row["output"], tokenizer.eos_token)
        ).removeprefix("" if example.input_ids[0] == tokenizer.bos_token_id else tokenizer.bos_token)
        trained = [token for token, kept in zip(example.input_ids, example.trained, strict=True) if kept]
        assert tokenizer.decode(trained) == " " + row["output"] + tokenizer.eos_token


@pytest.mark.soak
def test_p_tuning_continues_from_its_checkpoint_to_the_same_bytes(peftly, tiny_llama_folder, tmp_path):
    words = ["train", CONFIG, "--base", tiny_llama_folder, *VARIANTS["p_tuning"], "--set", "train.checkpoint_steps=1"]
    words += ["--set", "train.max_steps=12", "--set", "baselines=false", "--set", "train.generation_examples=0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert peftly(*words, "--out", whole).code == 0
    process = subprocess.Popen(command(*words, "--out", stopped), env=environment(), stdout=subprocess.DEVNULL)
    while not list(stopped.glob("checkpoint-*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    outcome = peftly("train", "--resume", stopped)
    assert outcome.code == 0, outcome.err
    one, other = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (whole, stopped))
    assert one == other


def test_lora_is_merged_and_a_soft_prompt_is_not(peftly, tiny_llama_folder, tmp_path):
    for name in ("lora", "text"):
        words = ["train", CONFIG, "--base", tiny_llama_folder, "--out", tmp_path / name, *FEW, *VARIANTS[name]]
        assert peftly(*words).code == 0
    assert peftly("merge", tmp_path / "lora", "--out", tmp_path / "merged").code == 0
    assert peftly("generate", "--base", tmp_path / "merged", "--prompt", "Human: 你好", "--max-new-tokens", 2).code == 0
    assert peftly("merge", tmp_path / "text", "--out", tmp_path / "none").code == 2


def test_the_script(example, tiny_llama_folder, tmp_path, in_root):
    module = example("chinese_instructions")
    module.BASE = str(shutil.copytree(tiny_llama_folder, tmp_path / "base"))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    longer = config | {"max_position_embeddings": 512}  # a character is up to three tokens here
    (tmp_path / "base" / "config.json").write_text(json.dumps(longer))
    found = module.main(str(tmp_path / "run"), epochs=1, new_tokens=6)
    assert found["after"] < found["before"]
    assert found["pipeline"].strip() == found["answer"].strip()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_peft_opens_the_prompt_and_answers_depend_on_the_batch_there(in_root, example, tiny_llama_folder, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model, tokenizer = library.load_base(tiny_llama_folder, dtype="float32")
    text = example("chinese_instructions").TEXT
    library.attach(model, library.PromptTuning(init_text=text, num_virtual_tokens="text"), tokenizer=tokenizer)
    library.save_adapter(model, tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokenizer.padding_side = "left"
    prompts = ["Human: 你好\n\nAssistant:", "Human: 为什么天空是蓝色的？请用一句话回答。\n\nAssistant:"]
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}

    def first_logits(of, texts):
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        return of.generate(**inputs, **options).logits[0][0]

    for of, is_same in ((model.eval(), True), (theirs, False)):
        alone, together = first_logits(of, prompts[:1]), first_logits(of, prompts)
        assert torch.allclose(alone, together, atol=1e-4) is is_same
