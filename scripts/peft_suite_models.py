"""Tiny random stand-ins for the models on the Hub that PEFT's tests ask for, in the layout of the Hub's cache.

    python scripts/peft_suite_models.py FOLDER

With HF_HUB_CACHE=FOLDER and HF_HUB_OFFLINE=1 every client of the Hub finds them by their ids. Models have the type and
the classes of the originals and random weights; adapters are written by PEFT itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1024
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXTS = [
    "I'm learning Python", "hello my name is", "The quick brown fox jumps over the lazy dog.", "What is the capital?",
    "This is a very long text about prompts, adapters and low-rank updates of the weights of a language model.",
    "Be yourself; everyone else is already taken.", "two cats on a pink couch", "你好，世界",
]  # fmt: skip

IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, **IDS, "intermediate_size": 64, "max_position_embeddings": 512}
GROUPED = {**WIDE, "num_key_value_heads": 2, "head_dim": 8}
OPT = {**SIZES, **IDS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **IDS}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    **IDS,
    "max_position_embeddings": 512,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    **IDS,
    "decoder_start_token_id": 2,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "num_mel_bins": 16,
}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "num_local_experts": 4}


def decoder(config: type, settings: dict, **more: object) -> Callable[[], tf.PreTrainedModel]:
    return lambda: tf.AutoModelForCausalLM.from_config(config(**settings, **more))


def encoder(config: type, head: type, **more: object) -> Callable[[], tf.PreTrainedModel]:
    return lambda: head.from_config(config(**WIDE, **more))


def llava() -> tf.PreTrainedModel:
    vision = tf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=30, patch_size=15
    )
    config = tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**GROUPED), image_token_index=5)
    return tf.LlavaForConditionalGeneration(config)


def gemma4() -> tf.PreTrainedModel:
    text = tf.Gemma4TextConfig(
        **GROUPED | {"num_hidden_layers": 4},
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    return tf.AutoModelForCausalLM.from_config(text)


MODELS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": decoder(tf.OPTConfig, OPT | {"num_hidden_layers": 5}),
    "peft-internal-testing/opt-125m": decoder(tf.OPTConfig, OPT | {"num_hidden_layers": 12}),
    "facebook/opt-125m": decoder(tf.OPTConfig, OPT | {"num_hidden_layers": 12}),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": decoder(tf.GPT2Config, GPT2),
    "peft-internal-testing/tiny-random-gpt2": decoder(tf.GPT2Config, GPT2),
    "hf-internal-testing/tiny-random-gpt2": decoder(tf.GPT2Config, GPT2),
    "gpt2": decoder(tf.GPT2Config, GPT2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": decoder(tf.GPTJConfig, GPT2 | {"rotary_dim": 4}),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": decoder(tf.GPTNeoXConfig, WIDE),
    "peft-internal-testing/tiny-random-BloomForCausalLM": decoder(
        tf.BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 5, "n_head": 4, **IDS}
    ),
    **dict.fromkeys(
        (
            "trl-internal-testing/tiny-random-LlamaForCausalLM",
            "peft-internal-testing/tiny-random-LlamaForCausalLM",
            "hf-internal-testing/tiny-random-LlamaForCausalLM",
        ),
        decoder(tf.LlamaConfig, GROUPED),
    ),
    "hf-internal-testing/tiny-random-MistralForCausalLM": decoder(tf.MistralConfig, GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": decoder(
        tf.Qwen2Config, {k: v for k, v in GROUPED.items() if k != "head_dim"}
    ),
    "Qwen/Qwen2-0.5B": decoder(tf.Qwen2Config, {k: v for k, v in GROUPED.items() if k != "head_dim"}),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": decoder(tf.Qwen3Config, GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": decoder(
        tf.Gemma3TextConfig, GROUPED, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "peft-internal-testing/tiny-random-gemma4-E2B": gemma4,
    "trl-internal-testing/tiny-Llama4ForCausalLM": decoder(
        tf.Llama4TextConfig,
        EXPERTS | {"intermediate_size_mlp": 64, "num_experts_per_tok": 1},
        interleave_moe_layer_step=1,
    ),
    "trl-internal-testing/tiny-GptOssForCausalLM": decoder(tf.GptOssConfig, EXPERTS),
    "tiiuae/falcon-mamba-tiny-dev": decoder(
        tf.FalconMambaConfig,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **IDS},
    ),
    "peft-internal-testing/tiny-random-BertModel": encoder(tf.BertConfig, tf.AutoModelForMaskedLM),
    "hf-internal-testing/tiny-random-BertModel": encoder(tf.BertConfig, tf.AutoModelForMaskedLM),
    "bert-base-uncased": encoder(tf.BertConfig, tf.AutoModelForMaskedLM),
    "peft-internal-testing/tiny-random-RobertaModel": encoder(tf.RobertaConfig, tf.AutoModel),
    "peft-internal-testing/tiny-random-DebertaModel": encoder(
        tf.DebertaConfig, tf.AutoModel, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "peft-internal-testing/tiny-random-DebertaV2Model": encoder(
        tf.DebertaV2Config, tf.AutoModel, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": encoder(
        tf.BertConfig, tf.AutoModelForSequenceClassification
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": encoder(
        tf.RobertaConfig, tf.AutoModelForSequenceClassification
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": lambda: (
        tf.AutoModelForSequenceClassification.from_config(tf.LlamaConfig(**GROUPED))
    ),
    **dict.fromkeys(
        (
            "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated",
            "peft-internal-testing/tiny-random-T5ForConditionalGeneration",
            "peft-internal-testing/tiny-random-t5",
            "google/flan-t5-small",
            "google/flan-t5-base",
        ),
        lambda: tf.AutoModelForSeq2SeqLM.from_config(tf.T5Config(**T5)),
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": lambda: tf.AutoModelForSeq2SeqLM.from_config(
        tf.BartConfig(**BART)
    ),
    "openai/whisper-tiny": lambda: tf.AutoModelForSpeechSeq2Seq.from_config(tf.WhisperConfig(**WHISPER)),
    "peft-internal-testing/tiny-random-ResNetForImageClassification": lambda: tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 2, 1])
    ),
    "hf-internal-testing/tiny-random-LlavaForConditionalGeneration": llava,
    "peft-internal-testing/tiny-LlavaForConditionalGeneration": llava,
    "peft-internal-testing/tiny-clip-text-2": lambda: tf.CLIPTextModelWithProjection(
        tf.CLIPTextConfig(**WIDE, projection_dim=16)
    ),
}
"""Models by their ids on the Hub."""

OPT_ID, GPT2_ID = "peft-internal-testing/tiny-random-OPTForCausalLM", "peft-internal-testing/tiny-random-gpt2"
T5_ID = "peft-internal-testing/tiny-random-T5ForConditionalGeneration"

ADAPTERS: dict[str, tuple[str, type, str | None]] = {
    "peft-internal-testing/tiny-OPTForCausalLM-lora": (OPT_ID, tf.AutoModelForCausalLM, "CAUSAL_LM"),
    "peft-internal-testing/tiny-opt-lora-revision": (OPT_ID, tf.AutoModelForCausalLM, "CAUSAL_LM"),
    "ybelkada/test-st-lora": (OPT_ID, tf.AutoModelForCausalLM, "CAUSAL_LM"),
    "peft-internal-testing/opt-125m-dummy-lora": (
        "peft-internal-testing/opt-125m", tf.AutoModelForCausalLM, "CAUSAL_LM",
    ),
    "peft-internal-testing/tiny_T5ForSeq2SeqLM-lora": (T5_ID, tf.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    "peft-internal-testing/tiny_OPTForSequenceClassification-lora": (
        OPT_ID, tf.AutoModelForSequenceClassification, "SEQ_CLS",
    ),
    "peft-internal-testing/tiny_GPT2ForTokenClassification-lora": (
        GPT2_ID, tf.AutoModelForTokenClassification, "TOKEN_CLS",
    ),
    "peft-internal-testing/tiny_OPTForQuestionAnswering-lora": (
        OPT_ID, tf.AutoModelForQuestionAnswering, "QUESTION_ANS",
    ),
    "peft-internal-testing/tiny_OPTForFeatureExtraction-lora": (OPT_ID, tf.AutoModel, "FEATURE_EXTRACTION"),
    "peft-internal-testing/tiny_WhisperForConditionalGeneration-lora": (
        "openai/whisper-tiny", tf.AutoModelForSpeechSeq2Seq, None,
    ),
    "peft-internal-testing/gpt2-lora-random": ("gpt2", tf.AutoModelForCausalLM, "CAUSAL_LM"),
    "peft-internal-testing/tiny-random-BertModel-lora": (
        "hf-internal-testing/tiny-random-BertModel", tf.AutoModelForCausalLM, None,
    ),
}  # fmt: skip
"""Adapters by their ids on the Hub: base, class of the base, and task."""

REVISIONS = {
    "peft-internal-testing/tiny-random-BertModel": ["v2.0.0"],
    "peft-internal-testing/tiny-random-BertModel-lora": ["v1.2.3"],
    "peft-internal-testing/tiny-opt-lora-revision": ["test"],
    "peft-internal-testing/tiny-OPTForCausalLM-lora": ["test"],
}


def tokenizer() -> tf.PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(TEXTS * 4, trainer)
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return tf.PreTrainedTokenizerFast(tokenizer_object=trained, **names)


def publish(hub: Path, repo: str, revision: str, folder: Path) -> None:
    """Move a folder into the cache as one revision of a repository."""
    commit = hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()
    root = hub / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    (root / "snapshots").mkdir(exist_ok=True)
    shutil.move(folder, root / "snapshots" / commit)


def write_model(
    hub: Path, repo: str, create: Callable[[], tf.PreTrainedModel], words: tf.PreTrainedTokenizerFast
) -> None:
    for seed, revision in enumerate(["main", *REVISIONS.get(repo, [])]):
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            create().save_pretrained(folder)
            words.save_pretrained(folder)
            publish(hub, repo, revision, folder)


def write_adapter(hub: Path, repo: str, base: str, head: type, task: str | None, subfolder: str = "") -> None:
    for seed, revision in enumerate(["main", *REVISIONS.get(repo, [])]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type=task, init_lora_weights=False, target_modules=None if task else "all-linear")
        model = peft.get_peft_model(head.from_pretrained(base), config)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "adapter"
            model.save_pretrained(folder / subfolder)
            publish(hub, repo, revision, folder)


def write_resized(hub: Path, repo: str, base: str, revision: str, words: tf.PreTrainedTokenizerFast) -> None:
    """Write an adapter with a larger vocabulary than its base, and its tokenizer."""
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(VOCABULARY + 2)
    words.add_tokens([f"<new-{number}>" for number in range(VOCABULARY + 2 - len(words))])
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(Path(scratch) / "adapter")
        words.save_pretrained(Path(scratch) / "adapter")
        publish(hub, repo, revision, Path(scratch) / "adapter")


def main(hub: Path) -> None:
    words = tokenizer()
    for repo, create in MODELS.items():
        try:
            write_model(hub, repo, create, words)
        except Exception as error:  # noqa: BLE001 - tests that need this model then say so
            print(f"no stand-in for {repo}: {error!r}"[:300])
    for repo, (base, head, task) in ADAPTERS.items():
        try:
            write_adapter(hub, repo, base, head, task)
        except Exception as error:  # noqa: BLE001
            print(f"no stand-in for {repo}: {error!r}"[:300])
    write_adapter(
        hub, "peft-internal-testing/test-lora-subfolder", OPT_ID, tf.AutoModelForCausalLM, "CAUSAL_LM", "test"
    )
    write_resized(hub, "peft-internal-testing/tiny-random-OPTForCausalLM-extended-vocab", OPT_ID, "main", tokenizer())
    write_resized(hub, "peft-internal-testing/opt-tokenizer-revision", OPT_ID, "my-revision", tokenizer())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if os.environ.get("HF_HUB_CACHE") != str(target) or os.environ.get("HF_HUB_OFFLINE") != "1":
        sys.exit(f"run with HF_HUB_CACHE={target} HF_HUB_OFFLINE=1")
    main(target)
