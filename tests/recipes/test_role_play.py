"""The recipe of role play on a tiny base: data, command, chat, script; and the template and layers of GLM-4."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from chat_templates import FAMILIES

import peftly as library

DATA = "examples/data/role_play.jsonl"
CONFIG = "examples/role_play.yaml"
FEW = ["--set", "train.max_steps=3", "--set", "train.gradient_accumulation_steps=2", "--set", "baselines=false"]
FEW += ["--set", "train.generation_examples=2"]


def read_rows():
    return [json.loads(line) for line in Path(DATA).read_text(encoding="utf-8").splitlines()]


def test_the_data_are_50_conversations_of_one_person(peftly, example):
    system = example("role_play").SYSTEM
    rows = read_rows()
    assert len(rows) == 50
    assert len({row["messages"][1]["content"] for row in rows}) == 50
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
        assert row["messages"][0]["content"] == system
        assert all(0 < len(message["content"]) <= 80 for message in row["messages"])


def test_by_the_command(peftly, tiny_llama_folder, tmp_path):
    run = tmp_path / "run"
    outcome = peftly("train", CONFIG, "--base", tiny_llama_folder, "--out", run, *FEW)
    assert outcome.code == 0, outcome.err
    words = ["generate", run, "--text", "你会下棋吗？", "--system", "你是说书先生。", "--max-new-tokens", 3, "--json"]
    assert peftly(*words).code == 0
    assert peftly("merge", run, "--out", tmp_path / "merged").code == 0


def test_only_the_turns_of_the_assistant_are_trained(peftly, tiny_llama_folder):
    _, tokenizer = library.load_base(tiny_llama_folder)
    data = library.load_data(read_rows(), tokenizer, max_length=4096, validation="none")
    for row, example in zip(read_rows(), data.train.encoded, strict=True):
        trained = [token for token, kept in zip(example.input_ids, example.trained, strict=True) if kept]
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert tokenizer.decode(trained) == "".join(answer + "<|im_end|>" for answer in answers)


def test_the_script(example, tiny_llama_folder, tmp_path, peftly):
    module = example("role_play")
    module.BASE = str(tiny_llama_folder)
    found = module.main(str(tmp_path / "run"), epochs=1, new_tokens=3)
    assert found["after"] < found["before"]
    assert {"你是谁？", "你会下棋吗？"} < found.keys()


def tiny_glm(folder, tiny_llama_folder):
    """Write a GLM-4 of two layers with its chat template, as `THUDM/glm-4-9b-chat-hf` has it."""
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_llama_folder)
    family = FAMILIES["glm 4"]
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special), "eos_token": family.eos})
    tokenizer.chat_template = family.template
    config = tf.GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.GlmForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_file_trains_glm_4(peftly, tiny_llama_folder, tmp_path):
    base = tiny_glm(tmp_path / "glm", tiny_llama_folder)
    run = tmp_path / "run"
    outcome = peftly("train", CONFIG, "--base", base, "--out", run, *FEW)
    assert outcome.code == 0, outcome.err
    model, tokenizer = library.load(run)
    parameters = library.trainable_parameters(model) or dict(model.named_parameters())
    adapted = {name.split(".peftly")[0].rsplit(".", 1)[-1] for name in parameters if "lora" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    data = library.load_data(read_rows()[:1], tokenizer, max_length=4096, validation="none")
    (example,) = data.train.encoded
    text = tokenizer.decode(example.input_ids)
    trained = [token for token, kept in zip(example.input_ids, example.trained, strict=True) if kept]
    answer = read_rows()[0]["messages"][-1]["content"]
    assert text.startswith("[gMASK]<sop><|system|>\n你是青石镇听雨楼的说书先生柳三更。<|user|>\n你是谁？<|assistant|>")
    assert tokenizer.decode(trained) == f"\n{answer}<|endoftext|>"


def test_the_layers_that_tutorials_name_are_not_in_glm_4_of_transformers():
    peft = pytest.importorskip("peft")
    with torch.device("meta"):
        model = tf.GlmForCausalLM(tf.GlmConfig(num_hidden_layers=1))
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} < names
    tutorial = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    assert not names & set(tutorial)
    with pytest.raises(ValueError, match="not found"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=tutorial))
