"""Tiny random bases of tasks other than causal language modelling, as folders with tokenizers made offline."""

import json
from functools import cache
from pathlib import Path

import torch
import transformers as tf
from data_tokenizers import CORPUS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from peftly import load_base
from peftly.data import DataConfig, load_data, read_data

ENCODERS = ("bert", "roberta", "distilbert")
ENCODER_DECODERS = ("t5", "mt5", "bart")
DECODERS = ("llama", "gpt2")

WORDS = [
    "late again never arrived crashed twice nobody answers great service love the store thanks for help",
    "Ada Lovelace lives in London Paris Berlin Bob Smith works at Acme Corp today and was there",
    "premise hypothesis yes no maybe complaint person place",
]
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_MARKS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
_SPREAD = 0.2  # with the usual 0.02 such a small model gives the same logits for every text


def tiny_base(architecture: str, folder: Path, *, head: str = "language", **changes) -> Path:
    """Write a random base to `folder` and return it.

    Args:
        architecture: one of `ENCODERS`, `ENCODER_DECODERS` and `DECODERS`.
        folder: folder of the base.
        head: "language" (masked, causal or sequence to sequence) or "none": a body without a head, with a pooler.
        changes: changes to the configuration.
    """
    tokenizer = tiny_tokenizer(architecture)
    config = _config(architecture, len(tokenizer))
    for name, value in changes.items():
        setattr(config, name, value)
    auto = tf.AutoModelForMaskedLM if architecture in ENCODERS else tf.AutoModelForCausalLM
    if architecture in ENCODER_DECODERS:
        auto = tf.AutoModelForSeq2SeqLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (tf.AutoModel if head == "none" else auto).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path, **settings) -> tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase]:
    """Open a tiny base in float64 for a task, with every tensor random: biases at their defaults hide mistakes."""
    model, tokenizer = load_base(str(folder), dtype="float32", **settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.double(), tokenizer


@cache
def tiny_tokenizer(architecture: str) -> tf.PreTrainedTokenizerBase:
    """The kind of tokenizer that bases of an architecture come with."""
    if architecture in ("bert", "distilbert"):
        return _word_pieces(architecture)
    return _unigram() if architecture in ("t5", "mt5") else _bytes(wrapped=architecture in ("roberta", "bart"))


def _word_pieces(architecture: str) -> tf.PreTrainedTokenizerBase:
    # Written out, for the trainer of word pieces breaks ties at random: short words whole, long ones in letters.
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?:@"
    known = dict.fromkeys(word for line in CORPUS + WORDS for word in line.lower().split() if len(word) <= 6)
    pieces = [*_MARKS, *letters, *(f"##{letter}" for letter in letters), *(word for word in known if len(word) > 1)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if architecture == "bert" else None
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        **({"model_input_names": inputs} if inputs else {}),
    )


def _bytes(*, wrapped: bool) -> tf.PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS + WORDS, trainer)
    if wrapped:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token="</s>"
    )


def _unigram() -> tf.PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator((CORPUS + WORDS) * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _config(architecture: str, vocabulary: int) -> tf.PreTrainedConfig:
    common = {"vocab_size": vocabulary, "max_position_embeddings": 160, "initializer_range": _SPREAD}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    match architecture:
        case "bert":
            return tf.BertConfig(**common, **_SIZES, **quiet, pad_token_id=0)
        case "roberta":
            return tf.RobertaConfig(**common, **_SIZES, **quiet, **_ENDS)
        case "distilbert":
            return tf.DistilBertConfig(
                **common, dim=32, hidden_dim=48, n_layers=2, n_heads=4, dropout=0.0, attention_dropout=0.0,
                seq_classif_dropout=0.0, pad_token_id=0,
            )  # fmt: skip
        case "t5" | "mt5":
            kind = tf.T5Config if architecture == "t5" else tf.MT5Config
            return kind(
                vocab_size=vocabulary, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, dropout_rate=0.0,
                feed_forward_proj="relu" if architecture == "t5" else "gated-gelu", decoder_start_token_id=0,
                pad_token_id=0, eos_token_id=2,
            )  # fmt: skip
        case "bart":
            return tf.BartConfig(
                vocab_size=vocabulary, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=160,
                dropout=0.0, init_std=_SPREAD, decoder_start_token_id=2, forced_eos_token_id=None, **_ENDS,
            )  # fmt: skip
        case "llama":
            return tf.LlamaConfig(**common, **_SIZES, **_ENDS, num_key_value_heads=2)
        case "gpt2":
            return tf.GPT2Config(
                vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=160, initializer_range=_SPREAD,
                embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, **_ENDS,
            )  # fmt: skip
    raise KeyError(architecture)


def labelled_rows(repeats: int = 5) -> list[dict]:
    """Return labelled texts that even a tiny model can tell apart."""
    bad = ["late again", "never arrived", "crashed twice", "nobody answers"]
    good = ["great service", "love the store", "thanks for the help", "open on Sunday"]
    return [
        {"text": f"{words} {number}", "label": label}
        for number in range(repeats)
        for label, kind in (("complaint", bad), ("no complaint", good))
        for words in kind
    ]


def pair_rows(repeats: int = 5) -> list[dict]:
    """Return pairs of texts, labelled by whether both are the same word."""
    words = ["late", "great", "never", "love"]
    return [
        {"premise": f"{one} {number}", "hypothesis": other, "label": "yes" if one == other else "no"}
        for number in range(repeats)
        for one in words
        for other in words
    ]


def tagged_rows(repeats: int = 4) -> list[dict]:
    """Return tagged sentences with people and locations."""
    rows = []
    for person in (["Ada", "Lovelace"], ["Bob", "Smith"], ["Ada"]):
        for place in (["London"], ["Paris"], ["Berlin"]):
            for words in (["lives", "in"], ["was", "in"]):
                tags = [*("B-PER", "I-PER")[: len(person)], "O", "O", "B-LOC"]
                rows.append({"tokens": [*person, *words, *place], "tags": tags})
    return rows * repeats


def answer_rows(repeats: int = 5) -> list[dict]:
    """Return prompts that hold their answer."""
    words = ["late", "great", "never", "love"]
    return [
        {"prompt": "say " + "again " * number + word, "completion": word} for number in range(repeats) for word in words
    ]


ROWS = {
    "sequence_classification": labelled_rows,
    "token_classification": tagged_rows,
    "seq2seq_lm": answer_rows,
}
TASK_CELLS = [
    *(("sequence_classification", name) for name in (*ENCODERS, *DECODERS)),
    *(("token_classification", name) for name in ENCODERS),
    *(("seq2seq_lm", name) for name in ENCODER_DECODERS),
]
"""Tasks and the architectures that they are tested on."""


def task_data(task: str, tokenizer: tf.PreTrainedTokenizerBase, folder: Path, rows=None, **settings):
    """Return encoded data of a task."""
    file = write_rows(folder / f"{task}.jsonl", ROWS[task]() if rows is None else rows)
    return load_data(DataConfig(train=str(file), **settings), tokenizer, task=task)


def prepared(task: str, folder: Path, rows_folder: Path, rows=None, **settings):
    """Return a base for a task, its tokenizer and encoded data."""
    rows = ROWS[task]() if rows is None else rows
    file = write_rows(rows_folder / f"{task}.jsonl", rows)
    shaped = read_data(DataConfig(train=str(file), **settings)).format(task)
    labels = shaped.row_format.labels if task.endswith("classification") else ()
    model, tokenizer = opened(folder, task=task, labels=labels)
    return model, tokenizer, shaped.encode(tokenizer)


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
