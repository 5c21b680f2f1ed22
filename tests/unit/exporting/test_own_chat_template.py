"""The chat template that a training sets goes with the adapter, and generation stops where it ends a turn."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftly import LoRA, attach, export, generate, load, load_base, load_data, save_adapter
from peftly.data import Example, prompt_ids
from peftly.inference import generation, greedy_settings
from peftly.merging.merged_folder import write

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|im_start|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ROWS = [{"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": "b"}]} for n in range(3)]
QUESTION = ROWS[0]["messages"][:1]


@pytest.fixture(scope="module")
def adapter(tiny_llama_folder, tmp_path_factory):
    base = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(ROWS, base.tokenizer, chat_template=TEMPLATE)
    assert base.tokenizer.decode(data.train.encoded[0].input_ids[-2:]) == "b<|im_start|>"
    model = attach(base.model, LoRA(rank=3))
    return save_adapter(model, tmp_path_factory.mktemp("own"), notes={"row_format": data.row_format.to_dict()})


def test_an_adapter_opens_with_its_template(adapter):
    loaded = load(adapter)
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert loaded.tokenizer.decode(prompt_ids(QUESTION, loaded.tokenizer)).startswith("<user>a ")


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_an_export_holds_the_tokenizer_with_the_template(adapter, tmp_path, to):
    exported = export(adapter, to, tmp_path / "out")
    opened = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened.chat_template == TEMPLATE
    ids = opened.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == prompt_ids(QUESTION, load(adapter).tokenizer)
    assert any("chat template" in note for note in exported.notes)
    if to == "vllm":
        assert any(f"--chat-template {tmp_path / 'out' / 'chat_template.jinja'}" in note for note in exported.notes)


def test_generation_stops_at_the_end_of_a_turn(adapter, tmp_path):
    model, tokenizer = load(adapter)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert set(ends) <= set(greedy_settings(model, tokenizer).eos_token_id)
    plain, _ = load_base(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    write(plain, tokenizer, torch.float32, tmp_path, "5GB")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert ends[1] in stored
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATE


def test_a_turn_that_ends_with_text_ends_generation(adapter, monkeypatch):
    model, tokenizer = load(adapter)
    tokenizer.chat_template = TEMPLATE.replace("<|im_start|>", "[END]")
    stops = []
    original = generation.StopTexts
    monkeypatch.setattr(generation, "StopTexts", lambda *args: stops.append(args[1][0]) or original(*args))
    generate(model, tokenizer, [QUESTION], max_new_tokens=1, stop="x")
    generate(model, tokenizer, Example(messages=tuple(QUESTION)), max_new_tokens=1)
    generate(model, tokenizer, "a", max_new_tokens=1, stop="x")
    assert stops == [("x", "[END]"), ("[END]",), ("x",)]
