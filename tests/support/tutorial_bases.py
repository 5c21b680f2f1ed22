"""Tiny random bases and data sets in folders named like those of the tutorials, made offline."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers as tf
from datasets import Dataset, DatasetDict
from tiny_tasks import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = Path(__file__).parents[1] / "tutorials" / "data"
_SPREAD = 0.2  # with the usual 0.02 such a small model gives the same logits for every text
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def write_tutorial_files(folder: Path) -> None:
    """Write every base and data set of the tutorials to `folder`."""
    for name, (config, tokenizer, auto) in _bases().items():
        config.vocab_size = len(tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = auto.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for file in sorted(DATA.glob("*.jsonl")):
        rows = Dataset.from_list(_rows(file.stem))
        halves = DatasetDict({"train": rows.select(range(len(rows) // 3, len(rows)))})
        halves["test"] = rows.select(range(len(rows) // 3))
        (rows if file.stem == "alpaca_zh" else halves).save_to_disk(folder / file.stem)
    _write_published_adapter(folder / "opt-350m-lora")


def _write_published_adapter(folder: Path) -> None:
    """Write a LoRA adapter of OPT as PEFT wrote them in 2023: few settings, and a file of pickled tensors."""
    config = {
        "base_model_name_or_path": "opt-350m", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 32, "lora_dropout": 0.05, "merge_weights": False, "modules_to_save": None,
        "peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    tensors = {
        f"base_model.model.model.decoder.layers.{layer}.self_attn.{name}.lora_{letter}.weight": torch.randn(
            *shape, generator=generator
        )
        * 0.1
        for layer in range(2)
        for name in ("q_proj", "v_proj")
        for letter, shape in (("A", (16, 32)), ("B", (32, 16)))
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    torch.save(tensors, folder / "adapter_model.bin")


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _texts(*names: str) -> list[str]:
    return [str(value) for name in names for row in _rows(name) for value in row.values()]


def _bases() -> dict[str, tuple[tf.PreTrainedConfig, tf.PreTrainedTokenizerBase, type]]:
    bloom = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": _SPREAD}
    chinese = _byte_pairs(_texts("alpaca_zh"), padding_side="left")
    tweets = _byte_pairs(_texts("twitter_complaints"), padding_side="left")
    quotes = _byte_pairs(_texts("quotes"), "<s> $A", pad_token=None)
    opt = _byte_pairs(_texts("quotes"), "</s> $A", bos_token="</s>")
    return {
        "bloom-1b4-zh": (tf.BloomConfig(**bloom, **_ENDS), chinese, tf.AutoModelForCausalLM),
        "chinese-llama": (tf.LlamaConfig(**_LLAMA, **_ENDS), chinese, tf.AutoModelForCausalLM),
        "bloomz-560m": (tf.BloomConfig(**bloom, **_ENDS), tweets, tf.AutoModelForCausalLM),
        "english-llama": (tf.LlamaConfig(**_LLAMA, **_ENDS), tweets, tf.AutoModelForCausalLM),
        "llama-2-7b": (tf.LlamaConfig(**_BLOCKS, **_ENDS | {"pad_token_id": None}), quotes, tf.AutoModelForCausalLM),
        "bert-base-uncased": (
            tf.BertConfig(**_SIZES, **_QUIET, initializer_range=_SPREAD, pad_token_id=0, max_position_embeddings=128),
            tiny_tokenizer("bert"),
            tf.AutoModelForPreTraining,
        ),
        "mt0-large": (
            tf.MT5Config(
                d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0,
                pad_token_id=0, eos_token_id=2, tie_word_embeddings=False,
            ),
            _pieces(_texts("translations")),
            tf.AutoModelForSeq2SeqLM,
        ),
        "opt-350m": (
            tf.OPTConfig(
                hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                dropout=0.0, max_position_embeddings=128, init_std=_SPREAD, **_ENDS | {"bos_token_id": 2},
            ),
            opt,
            tf.AutoModelForCausalLM,
        ),
    }  # fmt: skip


_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": _SPREAD}
_BLOCKS = _LLAMA | {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights fill the rows of a weight


def _byte_pairs(texts: Iterable[str], single: str = "", **settings) -> tf.PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if single:
        first = single.split()[0]
        special = [(first, tokenizer.token_to_id(first))]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens | settings)


def _pieces(texts: Iterable[str]) -> tf.PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
