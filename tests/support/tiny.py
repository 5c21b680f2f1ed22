"""Tiny random models of common architectures, in float64 so that tests can compare with a bound of 1e-10."""

import torch
import transformers as tf

VOCABULARY = 97
ARCHITECTURES = ("llama", "bloom", "gpt2", "opt", "qwen3", "gemma3", "glm4")
TASKS = {
    "causal_lm": (*ARCHITECTURES, "gpt_neox", "mistral", "phi"),
    "seq2seq_lm": ("t5", "mt5", "bart"),
    "sequence_classification": ("bert", "roberta", "distilbert", "llama", "gpt2", "gemma3"),
    "token_classification": ("bert", "roberta", "distilbert"),
}
LABELS = 3
WINDOW = 6
"""Window of the sliding layers of gemma3; tests use longer texts."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}


_SEQ2SEQ = {"vocab_size": VOCABULARY, "d_model": 32, "pad_token_id": 0, "eos_token_id": 2}
_T5 = _SEQ2SEQ | {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_CONFIGS = {
    "llama": (tf.LlamaConfig, _GROUPED),
    "bloom": (tf.BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4} | _TOKENS),
    "gpt2": (
        tf.GPT2Config,
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
        | _TOKENS,
    ),
    "opt": (tf.OPTConfig, _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "qwen3": (tf.Qwen3Config, _GROUPED),
    "gemma3": (
        tf.Gemma3TextConfig,
        _GROUPED | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "glm4": (tf.Glm4Config, _GROUPED),
    "gpt_neox": (tf.GPTNeoXConfig, _COMMON),
    "mistral": (tf.MistralConfig, _GROUPED | {"sliding_window": WINDOW}),
    "phi": (tf.PhiConfig, _COMMON),
    "bert": (tf.BertConfig, _COMMON),
    "roberta": (tf.RobertaConfig, _COMMON),
    "distilbert": (
        tf.DistilBertConfig,
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    "t5": (tf.T5Config, _T5),
    "mt5": (tf.MT5Config, _T5),
    "bart": (
        tf.BartConfig,
        _SEQ2SEQ
        | {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", 2), ("ffn_dim", 48))}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
        | {"bos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None},
    ),
}


def tiny_config(architecture: str) -> tf.PreTrainedConfig:
    kind, settings = _CONFIGS[architecture]
    return kind(**settings)


_AUTO = {
    "causal_lm": tf.AutoModelForCausalLM,
    "seq2seq_lm": tf.AutoModelForSeq2SeqLM,
    "sequence_classification": tf.AutoModelForSequenceClassification,
    "token_classification": tf.AutoModelForTokenClassification,
}


def tiny_model(
    architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0, task: str = "causal_lm", **sizes: int
) -> tf.PreTrainedModel:
    """Return a model with every tensor random: biases and norms at their defaults would hide mistakes.

    Args:
        architecture: one of `TASKS[task]`.
        dtype: dtype of the parameters; bloom is always in float32.
        seed: seed of the random numbers.
        task: task of the head.
        sizes: changes to the configuration.
    """
    config = tiny_config(architecture)
    config.update(sizes)
    if "classification" in task:
        config.num_labels = LABELS
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _AUTO[task].from_config(config, attn_implementation="sdpa" if architecture != "bloom" else "eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    # bloom computes its softmax in fp32, where the masks of a float64 model overflow
    return model.to(torch.float32 if architecture == "bloom" else dtype).eval()


def perturb(parameters, scale: float = 0.1, seed: int = 1) -> None:
    """Add random numbers to trained parameters: at their initial values most mistakes are invisible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype) * scale
            )


def padded(texts: list[list[int]], side: str, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts of token ids as a padded batch: ids and attention mask, (batch, length)."""
    length = max(map(len, texts))
    ids = torch.full((len(texts), length), pad_id)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    for index, text in enumerate(texts):
        columns = slice(0, len(text)) if side == "right" else slice(length - len(text), None)
        ids[index, columns] = torch.tensor(text)
        mask[index, columns] = 1
    return ids, mask


def random_token_ids(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Return random texts of these lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
