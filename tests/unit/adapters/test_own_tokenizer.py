"""An adapter folder with a tokenizer, a chat template, new tokens or settings of generation of its own."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from references import assert_close
from tiny import perturb
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from peftly import (
    LoRA,
    PromptTuning,
    TrainConfig,
    attach,
    attached,
    detach,
    export,
    generate,
    load,
    load_adapter,
    load_base,
    load_data,
    save_adapter,
    save_merged,
    train,
    trainable_parameters,
)
from peftly.adapters.own_tokenizer import own_tokenizer, tokenizers_differ
from peftly.data import prompt_ids
from peftly.errors import AdapterError
from peftly.merging import save_combined
from peftly.runs import open_run

TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|stop|>{% endfor %}"
    "{% if add_generation_prompt %}<|reply|>{% endif %}"
)
TEXT = "<|user|>hi<|reply|>"
TRAINED = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|im_start|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ROWS = [{"messages": [{"role": "user", "content": f"a {n}"}, {"role": "assistant", "content": "b"}]} for n in range(3)]


def chatty(tokenizer):
    """Add three tokens, an end token and a template, as TRL does."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|stop|>", "<|reply|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|stop|>", TEMPLATE
    return tokenizer


def own_base(folder):
    """Return a base with embeddings of the new tokens, and its tokenizer."""
    tokenizer = chatty(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


@pytest.fixture(scope="module")
def theirs(tiny_llama_folder, tmp_path_factory):
    """Folder that a trainer wrote with PEFT, token ids of a text, and the logits of it."""
    folder = tmp_path_factory.mktemp("theirs")
    base, tokenizer = own_base(tiny_llama_folder)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    perturb(parameter for parameter in model.parameters() if parameter.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, max_new_tokens=7).save_pretrained(folder)
    ids = tokenizer(TEXT).input_ids
    assert len(ids) < 5
    return folder, ids, logits(model, ids)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_an_adapter_opens_with_its_tokenizer_and_embeddings(theirs, tiny_llama_folder, tmp_path):
    folder, ids, expected = theirs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = load(folder, dtype="float32")
    assert tokenizer(TEXT).input_ids == ids
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|stop|>", TEMPLATE)
    assert model.generation_config.max_new_tokens == 7
    assert_close(logits(model, ids), expected, 1e-6)
    save_adapter(model, tmp_path / "again")
    again = load(tmp_path / "again", dtype="float32")
    assert not tokenizers_differ(again.tokenizer, tokenizer)
    assert again.model.generation_config.max_new_tokens == 7
    assert_close(logits(again.model, ids), expected, 1e-6)
    own = load_base(str(tiny_llama_folder)).model.generation_config.to_dict()
    assert detach(model).generation_config.to_dict() == own
    opened = open_run(str(folder))  # as `peftly chat`, `generate` and `evaluate` do
    assert opened.tokenizer(TEXT).input_ids == ids
    turns = [{"role": "user", "content": "hi"}]
    assert prompt_ids(turns, opened.tokenizer)[0] == ids[0]
    assert generate(opened.model, opened.tokenizer, [turns], max_new_tokens=3)


def test_a_merged_model_and_a_gguf_file_have_them(theirs, tmp_path):
    from gguf import GGUFReader

    folder, ids, expected = theirs
    assert save_merged(folder, tmp_path / "merged", dtype="float32").complaint is None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert_close(logits(model, ids), expected, 2e-6)
    assert tokenizer(TEXT).input_ids == ids
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|stop|>", TEMPLATE)
    assert tokenizer.eos_token_id in torch.tensor(model.generation_config.eos_token_id)
    export(folder, "gguf", tmp_path / "gguf", dtype="f32")
    reader = GGUFReader(next((tmp_path / "gguf").glob("*.gguf")))
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert bytes(tokens.parts[tokens.data[ids[0]]]).decode() == "<|user|>"
    assert bytes(reader.fields["tokenizer.chat_template"].parts[-1]).decode() == TEMPLATE
    assert int(reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0]) == tokenizer.eos_token_id
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["token_embd.weight"][1] == len(tokenizer)


def test_exports_hold_the_tokenizer_or_are_refused(theirs, tiny_llama_folder, tmp_path):
    folder, ids, expected = theirs
    export(folder, "peft", tmp_path / "peft")
    assert AutoTokenizer.from_pretrained(tmp_path / "peft")(TEXT).input_ids == ids
    model = peft.PeftModel.from_pretrained(own_base(tiny_llama_folder)[0], tmp_path / "peft").eval()
    assert_close(logits(model, ids), expected, 1e-6)
    base, _ = own_base(tiny_llama_folder)
    with pytest.raises(AdapterError, match=r"cannot be exported for vLLM: .*merge it into the base instead"):
        export(folder, "vllm", tmp_path / "vllm")
    prompt = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.warns(UserWarning, match="the embedding layer has been resized"):
        prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(AdapterError, match="embeddings of new tokens, which a server of the base lacks"):
        export(tmp_path / "prompt", "prompt-embeddings", tmp_path / "embeddings")


@pytest.mark.parametrize(
    ("to", "config"),
    [("vllm", LoRA(rank=2)), ("gguf-lora", LoRA(rank=2)), ("prompt-embeddings", PromptTuning(init="random"))],
)
def test_servers_of_the_base_lack_new_tokens(to, config, tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder))
    attach(model, config)
    tokenizer.chat_template = TEMPLATE
    save_adapter(model, tmp_path / "a", tokenizer=tokenizer)
    export(tmp_path / "a", to, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    save_adapter(model, tmp_path / "a", tokenizer=chatty(tokenizer))
    with pytest.raises(AdapterError, match=r"vocabulary of \d+ tokens, and a server of its base has \d+ embeddings"):
        export(tmp_path / "a", to, tmp_path / "out", overwrite=True)


def test_tokens_without_embeddings_get_the_mean_and_are_named(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    save_adapter(attach(model, LoRA(rank=2)), tmp_path, tokenizer=chatty(tokenizer))
    with pytest.warns(UserWarning, match=r"has 3 tokens \(<\|reply\|>, <\|stop\|>, <\|user\|>\) that are not in the"):
        opened = load(tmp_path, dtype="float32")
    weight = opened.model.get_input_embeddings().weight
    assert_close(weight[-1], weight[:-3].mean(0), 1e-6)
    base = load_base(str(tiny_llama_folder))
    with pytest.raises(AdapterError, match=r"call base\.model\.resize_token_embeddings\(\d+\) first"):
        load_adapter(base, tmp_path)


def test_a_base_with_a_tokenizer_gets_that_of_the_adapter(theirs, tiny_llama_folder):
    folder, ids, expected = theirs
    base = load_base(str(tiny_llama_folder), dtype="float32")
    base.model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    opened = load_adapter(base, folder)
    assert opened.model is base.model
    assert opened.tokenizer(TEXT).input_ids == ids != base.tokenizer(TEXT).input_ids
    assert_close(logits(opened.model, ids), expected, 1e-6)


KINDS = [
    ("bert", {"task": "sequence_classification", "labels": ("no", "yes")}),
    ("roberta", {"task": "token_classification", "labels": ("O", "B")}),
    ("llama", {"task": "sequence_classification", "labels": ("no", "yes")}),
    ("t5", {}),
    ("bart", {}),
    ("gpt2", {}),
]


@pytest.mark.parametrize(("architecture", "task"), KINDS, ids=[architecture for architecture, _ in KINDS])
@pytest.mark.filterwarnings("ignore:.*has no weights for")
def test_models_of_other_kinds_open_with_new_tokens(architecture, task, task_base, tmp_path):
    model, tokenizer = load_base(str(task_base(architecture)), dtype="float32", **task)
    tokenizer.add_special_tokens({"pad_token": "<|fill|>", "additional_special_tokens": ["<|new|>"]})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    perturb(trainable_parameters(attach(model, LoRA(rank=2))).values())
    save_adapter(model, tmp_path, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = load(tmp_path, dtype="float32")
    ids = tokenizer("late <|new|> again").input_ids
    assert opened.tokenizer("late <|new|> again").input_ids == ids
    assert tokenizer.convert_tokens_to_ids("<|new|>") in ids
    if architecture == "llama":  # finds the end of a text by the pad token
        assert opened.model.config.pad_token_id == opened.tokenizer.convert_tokens_to_ids("<|fill|>")
        model.config.pad_token_id = opened.model.config.pad_token_id
    inputs = torch.tensor([[*ids, opened.tokenizer.pad_token_id]] * 2)
    more = {"decoder_input_ids": inputs} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        expected = model(input_ids=inputs, **more).logits
        assert_close(opened.model(input_ids=inputs, **more).logits, expected, 1e-6)


PARTS = {
    "a template": {"chat_template.jinja": TEMPLATE},
    "a template in the config": {"tokenizer_config.json": {"chat_template": TEMPLATE}},
    "an end token": {"special_tokens_map.json": {"eos_token": {"content": "<|bos|>"}}},
    "tokens": {"added_tokens.json": {"<|new|>": 426}},
    "described tokens": {
        "tokenizer_config.json": {"added_tokens_decoder": {"426": {"content": "<|new|>", "special": True}}}
    },
    "another id": {"added_tokens.json": {"<|new|>": 430}},
    "no JSON": {"tokenizer_config.json": "{"},
    "a damaged tokenizer": {"tokenizer.json": "{}"},
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_of_a_tokenizer_complete_that_of_the_base(case, tiny_llama_folder, tmp_path):
    base = AutoTokenizer.from_pretrained(tiny_llama_folder)
    size = len(base)
    assert own_tokenizer(tmp_path, base) is None
    for name, content in PARTS[case].items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    if case in ("another id", "no JSON", "a damaged tokenizer"):
        with pytest.raises(AdapterError, match=str(tmp_path)):
            own_tokenizer(tmp_path, base)
        return
    tokenizer = own_tokenizer(tmp_path, base)
    assert (tokenizer.chat_template == TEMPLATE) == ("template" in case)
    assert (tokenizer.eos_token == "<|bos|>") == ("end token" in case)
    assert tokenizer.convert_tokens_to_ids("<|new|>") == (426 if "tokens" in case else None)
    assert len(base) == size
    assert base.chat_template != TEMPLATE


def test_adapters_with_different_tokenizers_are_opened_one_at_a_time(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder))
    for name in "ab":
        save_adapter(attach(model, LoRA(rank=2), name=name), tmp_path / name, name=name)
    sources = [tmp_path / "a", tmp_path / "b"]
    tokenizer.save_pretrained(tmp_path / "a")  # the same as the base's
    save_merged(sources, tmp_path / "merged")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "a")
    for function in (save_merged, save_combined):
        with pytest.raises(AdapterError, match=r"a and .*b have different tokenizers, .* open them one at a time"):
            function(sources, tmp_path / "out")
    shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
    save_combined(sources, tmp_path / "out")
    assert load(tmp_path / "out").tokenizer.chat_template == TEMPLATE


def test_adapters_saved_together_have_the_tokenizer_beside_them(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder))
    attach(attach(model, LoRA(rank=2), name="a"), LoRA(rank=2), name="b")
    save_adapter(model, tmp_path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).tokenizer.chat_template == TEMPLATE
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(AdapterError, match="have different tokenizers"):
        load(tmp_path)


def test_a_tokenizer_that_we_wrote_goes_with_its_adapter(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder))
    attach(model, LoRA(rank=2))
    tokenizer.chat_template = TEMPLATE
    save_adapter(model, tmp_path, tokenizer=tokenizer)
    save_adapter(model, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    tokenizer.save_pretrained(tmp_path)  # by somebody else, as transformers' Trainer does
    save_adapter(model, tmp_path)
    assert load(tmp_path).tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("has_template", [False, True])
def test_a_run_saves_a_tokenizer_that_is_not_that_of_the_base(has_template, tiny_llama_folder, tmp_path):
    base = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(ROWS, base.tokenizer, **({"chat_template": TRAINED} if has_template else {}))
    attach(base.model, LoRA(rank=2))
    train(base.model, data, TrainConfig(max_steps=1), tokenizer=base.tokenizer, out=tmp_path)
    found = (tmp_path / "adapter" / "tokenizer.json").exists()
    assert found == has_template
    if has_template:
        assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template == TRAINED
    assert list(attached(base.model)) == ["default"]
    assert trainable_parameters(base.model)
