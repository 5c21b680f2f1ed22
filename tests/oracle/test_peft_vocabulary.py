"""Trained copies of tied modules, and embeddings of a resized vocabulary, through files of PEFT and of peftly."""

import warnings

import peft
import pytest
import torch
import transformers as tf
from references import assert_close
from safetensors.torch import load_file
from tiny import LABELS, perturb, tiny_config, tiny_model

from peftly import (
    IA3,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
NEW = torch.tensor([[5, 98, 33, 60, 97, 41, 99]])
ROWS = 100
"""Number of embeddings after the resize; the tiny models have 97."""
BOUND = 1e-6


def llama_tied():
    return tiny_model("llama", torch.float32, tie_word_embeddings=True)


def masked_bert():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForMaskedLM.from_config(tiny_config("bert")).eval()
    perturb(model.parameters())
    return model


MODELS = {
    "llama": lambda: tiny_model("llama", torch.float32),
    "llama tied": llama_tied,
    "gpt2": lambda: tiny_model("gpt2", torch.float32),
    "phi": lambda: tiny_model("phi", torch.float32),  # a head with a bias
    "t5": lambda: tiny_model("t5", torch.float32, task="seq2seq_lm"),
    "bart": lambda: tiny_model("bart", torch.float32, task="seq2seq_lm"),
    "masked bert": masked_bert,
    "classifier bert": lambda: tiny_model("bert", torch.float32, task="sequence_classification"),
    "classifier llama": lambda: tiny_model("llama", torch.float32, task="sequence_classification"),
}
TARGETS = {"gpt2": "c_attn", "t5": "q", "masked bert": "query", "classifier bert": "query"}
TASKS = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "masked bert": None}


def logits(model, ids):
    decoder_ids = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **decoder_ids).logits[:, -ids.shape[1] :]


def their_lora(name, **settings):
    task = "SEQ_CLS" if name.startswith("classifier") else TASKS.get(name, "CAUSAL_LM")
    return peft.LoraConfig(**{"task_type": task, "r": 3, "target_modules": [TARGETS.get(name, "q_proj")], **settings})


def trained_by_peft(model, config, folder, ids):
    """Train with PEFT, save, and return the logits."""
    theirs = peft.get_peft_model(model, config)
    perturb(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.eval().save_pretrained(folder)
    return logits(theirs, ids)


TIED = {
    "both": ("llama tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "both, tied by PEFT": ("llama tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "the embedding": ("llama tied", {"modules_to_save": ["embed_tokens"]}),
    "the head": ("llama tied", {"modules_to_save": ["lm_head"]}),
    "LoRA of both": ("llama tied", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "LoRA of the embedding, tied by PEFT": (
        "llama tied",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "both of gpt2": ("gpt2", {"modules_to_save": ["wte", "lm_head"]}),
    "both of a masked bert": ("masked bert", {"modules_to_save": ["word_embeddings", "decoder"]}),
    "three of t5": ("t5", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "four of t5": ("t5", {"modules_to_save": ["shared", "embed_tokens", "lm_head"]}),
    "three of bart": ("bart", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "two of bart": ("bart", {"modules_to_save": ["embed_tokens"]}),
}


@pytest.mark.parametrize("case", TIED)
@pytest.mark.filterwarnings("ignore")
def test_copies_of_tied_modules_are_as_many_as_in_the_file(case, tmp_path):
    name, settings = TIED[case]
    expected = trained_by_peft(MODELS[name](), their_lora(name, **settings), tmp_path / "theirs", IDS)
    model = load_adapter(MODELS[name](), tmp_path / "theirs")
    assert_close(logits(model, IDS), expected, BOUND)
    save_adapter(model, tmp_path / "ours")
    assert_close(logits(load_adapter(MODELS[name](), tmp_path / "ours"), IDS), expected, BOUND)
    theirs = peft.PeftModel.from_pretrained(MODELS[name](), tmp_path / "ours").eval()
    assert_close(logits(theirs, IDS), expected, BOUND)
    merge(model).save_pretrained(tmp_path / "merged")
    assert_close(logits(model, IDS), expected, BOUND)
    assert_close(logits(type(model).from_pretrained(tmp_path / "merged").eval(), IDS), expected, BOUND)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Function that opens a tiny model from a folder, with other embeddings of the new tokens for each seed."""
    root = tmp_path_factory.mktemp("bases")

    def opened(name, seed, rows=ROWS):
        folder = root / name.replace(" ", "_")
        if not folder.exists():
            MODELS[name]().save_pretrained(folder)
        extra = {"num_labels": LABELS} if name.startswith("classifier") else {}
        model = type(MODELS[name]()).from_pretrained(folder, **extra).eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(rows, mean_resizing=False)
        return model

    return opened


OURS = {
    "lora": LoRA(rank=3),
    "lora of the embedding": LoRA(rank=3, target_modules=("embed_tokens", "q_proj")),
    "lora of both": LoRA(rank=3, target_modules=("embed_tokens", "q_proj", "lm_head")),
    "copy of the embedding": LoRA(rank=3, target_modules=("q_proj",), modules_to_save=("embed_tokens",)),
    "ia3": IA3(),
    "prompt": PromptTuning(num_virtual_tokens=3, init="random"),
    "prefix": PrefixTuning(num_virtual_tokens=3, init="random"),
}
CELLS = [("llama", method) for method in OURS] + [(name, "lora") for name in MODELS if name != "llama"]
CELLS += [("llama tied", "copy of the embedding"), ("bart", "prompt")]


@pytest.mark.parametrize(("name", "method"), CELLS)
@pytest.mark.filterwarnings("ignore")
def test_our_file_has_the_embeddings_of_new_tokens(name, method, bases, tmp_path):
    model = attach(bases(name, 1), OURS[method])
    perturb(trainable_parameters(model).values())
    expected = logits(model, NEW)
    save_adapter(model, tmp_path / "ours")
    base = bases(name, 2)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_adapter(base, tmp_path / "ours")
    assert_close(logits(again, NEW), expected, BOUND)
    save_adapter(again, tmp_path / "again")
    theirs = peft.PeftModel.from_pretrained(bases(name, 3), tmp_path / "again").eval()
    if (name, method) != ("bart", "prompt") and method != "prefix":  # in which PEFT itself differs
        assert_close(logits(theirs, NEW), expected, BOUND)
    detach(again)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


THEIRS = {
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "tied": ("llama tied", {}),
    "LoRA of both": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "copy of the embedding": ("llama tied", {"modules_to_save": ["embed_tokens"]}),
    "copies of both": ("llama tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "a head with a bias": ("phi", {}),
    "t5": ("t5", {}),
    "bart": ("bart", {}),
    "masked bert": ("masked bert", {}),
    "classifier bert": ("classifier bert", {}),
    "classifier llama": ("classifier llama", {}),
    "a prompt": ("llama", None),
}


@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.filterwarnings("ignore")
def test_their_file_has_the_embeddings_of_new_tokens(case, bases, tmp_path):
    name, settings = THEIRS[case]
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    if settings is not None:
        config = their_lora(name, **settings)
    expected = trained_by_peft(bases(name, 1), config, tmp_path / "theirs", NEW)
    model = load_adapter(bases(name, 2), tmp_path / "theirs")
    assert_close(logits(model, NEW), expected, BOUND)
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(bases(name, 3), tmp_path / "ours").eval()
    assert_close(logits(theirs, NEW), expected, BOUND)
    assert load_file(tmp_path / "theirs" / "adapter_model.safetensors").keys() >= {
        key for key in load_file(tmp_path / "ours" / "adapter_model.safetensors") if "lm_head" not in key
    }
    if settings is not None:
        merge(model)
        assert model.get_input_embeddings().weight.shape[0] == ROWS
        assert_close(logits(model, NEW), expected, 2e-6)
