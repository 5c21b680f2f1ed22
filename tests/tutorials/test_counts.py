"""Trainable parameters on the bases that the tutorials name, on the meta device: the lines that PEFT prints."""

from pathlib import Path

import peft
import pytest
import torch
import transformers as tf

import peftly.peft

PAGE = Path(__file__).parents[2] / "docs" / "tutorials.md"
BASES = {
    "bloom-1b4-zh": (
        tf.AutoModelForCausalLM,
        tf.BloomConfig(vocab_size=46145, hidden_size=2048, n_layer=24, n_head=16),
    ),
    "bloomz-560m": (
        tf.AutoModelForCausalLM,
        tf.BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16),
    ),
    "llama-2-7b": (tf.AutoModelForCausalLM, tf.LlamaConfig()),
    "mt0-large": (
        tf.AutoModelForSeq2SeqLM,
        tf.MT5Config(vocab_size=250112, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16),
    ),
    "bert-base-uncased": (tf.AutoModelForSequenceClassification, tf.BertConfig()),
}
LINEAR_OF_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [
    ("bloom-1b4-zh", "PromptTuningConfig", {"num_virtual_tokens": 10}, "20,480 || all params: 1,303,132,160", "0.0016"),
    ("bloomz-560m", "PromptTuningConfig", {"num_virtual_tokens": 8}, "8,192 || all params: 559,222,784", "0.0015"),
    (
        "llama-2-7b",
        "LoraConfig",
        {"r": 16, "target_modules": LINEAR_OF_LLAMA},
        "39,976,960 || all params: 6,778,392,576",
        "0.5898",
    ),
    ("mt0-large", "LoraConfig", {"r": 8}, "2,359,296 || all params: 975,825,920", "0.2418"),
]


def printed(package, base, config, settings, capsys):
    auto, model_config = BASES[base]
    task = {tf.AutoModelForSeq2SeqLM: "SEQ_2_SEQ_LM", tf.AutoModelForCausalLM: "CAUSAL_LM"}.get(auto, "SEQ_CLS")
    with torch.device("meta"):
        model = auto.from_config(model_config)
        adapted = package.get_peft_model(model, getattr(package, config)(task_type=task, **settings))
    capsys.readouterr()
    adapted.print_trainable_parameters()
    return capsys.readouterr().out


OTHERS = [
    ("bloom-1b4-zh", "PromptEncoderConfig", {"num_virtual_tokens": 10}),
    (
        "bloom-1b4-zh",
        "PromptEncoderConfig",
        {"num_virtual_tokens": 10, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 512},
    ),
    ("bloom-1b4-zh", "PrefixTuningConfig", {"num_virtual_tokens": 10}),
    ("bloom-1b4-zh", "PrefixTuningConfig", {"num_virtual_tokens": 10, "prefix_projection": True}),
    ("bloom-1b4-zh", "LoraConfig", {}),
    (
        "bloom-1b4-zh",
        "LoraConfig",
        {"target_modules": ".*\\.1.*query_key_value", "modules_to_save": ["word_embeddings"]},
    ),
    ("bloom-1b4-zh", "IA3Config", {}),
    ("bert-base-uncased", "LoraConfig", {}),
    ("bert-base-uncased", "PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_hidden_size": 128}),
    ("bert-base-uncased", "PrefixTuningConfig", {"num_virtual_tokens": 20}),
    ("mt0-large", "PromptTuningConfig", {"num_virtual_tokens": 20}),
]


@pytest.mark.parametrize(("base", "config", "settings", "counts", "percent"), CASES, ids=[case[0] for case in CASES])
def test_the_line_of_the_tutorial(base, config, settings, counts, percent, capsys):
    expected = f"trainable params: {counts} || trainable%: {percent}\n"
    assert printed(peftly.peft, base, config, settings, capsys) == expected
    assert printed(peft, base, config, settings, capsys) == expected
    assert expected.strip().replace("|", "\\|") in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("base", "config", "settings"), OTHERS, ids=str)
def test_the_line_of_peft(base, config, settings, capsys):
    expected = printed(peft, base, config, settings, capsys)
    assert expected.startswith("trainable params: ")
    assert printed(peftly.peft, base, config, settings, capsys) == expected
