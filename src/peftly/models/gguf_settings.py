"""Settings in the header of a GGUF file that transformers does not read: they are applied to the config, or refused."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError
from peftly.models.gguf_header import GgufHeader

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedConfig

__all__ = ["apply_settings", "check_is_model", "check_tensors"]

_CHECKED = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "stablelm", "starcoder2", "nemotron")
"""Architectures of which every setting and every tensor must be read."""

_READ = frozenset(
    (
        *("context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.sliding_window"),
        *("attention.causal", "attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual"),
        *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa"),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear"),
    )
)
"""Settings that transformers or this module reads."""

_WITHOUT_MEANING = frozenset({"rope.scaling.finetuned", "tensor_data_layout"})

_ROPE_DIVISORS = "rope_freqs.weight"
_MAX_ORIGINAL_LENGTH = 20
"""Logarithm of the longest context for which a base can have been trained before its frequencies were scaled."""

_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon")
"""Names of the epsilon of norms in configs."""

_LARGE_GEMMAS = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and number of layers of the Gemma models of 27B, which scale attention by hidden_size / heads."""


def check_is_model(file: Path, header: GgufHeader) -> None:
    """Do nothing if a GGUF file holds a whole model.

    Raises:
        BaseModelError: the file holds an adapter, an image encoder or one shard of a model.
    """
    kind, shards = header.metadata.get("general.type", "model"), header.metadata.get("split.count", 1)
    if kind == "adapter":
        raise BaseModelError(f"{file} holds a LoRA adapter for llama.cpp, and no model: give the file of its base")
    if kind != "model":
        raise BaseModelError(f"{file} holds a part of a model ({kind}): give the file of the language model")
    if isinstance(shards, int) and shards > 1:
        raise BaseModelError(f"{file} is one of {shards} shards: join them with llama-gguf-split --merge")


def apply_settings(file: Path, header: GgufHeader, config: "PreTrainedConfig") -> None:
    """Write the settings of a header that transformers does not read into the config that it made, in place.

    Raises:
        BaseModelError: the model has a setting that its config cannot represent.
    """
    architecture = header.metadata["general.architecture"]
    if architecture not in _CHECKED:
        return
    settings = _settings(header)
    for name, value in settings.items():
        is_unused = name in _WITHOUT_MEANING or (name.startswith("expert_") and not value)
        if name not in _READ and not is_unused:
            raise BaseModelError(f"{file} has a setting that is not supported: {architecture}.{name} is {value}")
    if settings.get("attention.causal") is False:
        raise BaseModelError(f"{file} holds an encoder ({architecture}.attention.causal is False), and no decoder")
    if "token_embd.weight" in header.shapes:
        config.vocab_size = header.shapes["token_embd.weight"][1]
    _apply_heads(file, settings, config)
    _apply_attention(file, settings, config, is_large=(architecture, config.num_hidden_layers) in _LARGE_GEMMAS)
    _apply_rope(file, header, settings, config)


def _apply_attention(file: Path, settings: dict[str, Any], config: Any, *, is_large: bool) -> None:
    """Set the window and the scaling of attention, the bounds of logits, and the epsilon of norms."""
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        for known in _EPSILONS:
            if name in settings and hasattr(config, known):
                setattr(config, known, settings[name])
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"):
        known = name.removeprefix("attention.")
        if settings.get(name) and not hasattr(config, known):
            raise BaseModelError(f"{file} has a setting that transformers' {config.model_type} does not have: {name}")
        if settings.get(name):
            setattr(config, known, settings[name])
    if hasattr(
        config, "query_pre_attn_scalar"
    ):  # a GGUF file does not state it: llama.cpp has these values in its code
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_large else config.head_dim


def check_tensors(file: Path, header: GgufHeader, parameters: set[str]) -> None:
    """Do nothing if the model reads every tensor of a file.

    Args:
        file: the GGUF file, for the message.
        header: its header.
        parameters: names of the parameters of the opened model.

    Raises:
        BaseModelError: the model lacks a parameter for a tensor, such as a bias.
    """
    import gguf

    architecture = header.metadata["general.architecture"]
    if architecture not in _CHECKED:
        return
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, header.metadata[f"{architecture}.block_count"])
    read = {names.get_name(path, try_suffixes=(".weight", ".bias")) for path in parameters} | {_ROPE_DIVISORS}
    unread = sorted(name for name in header.shapes if name not in read and not name.endswith(".attn_rot_embd"))
    if unread:
        raise BaseModelError(f"{file} has tensors that transformers' {architecture} does not have: {unread[0]}")


def _settings(header: GgufHeader) -> dict[str, Any]:
    """Return the settings of the architecture, by their names without it."""
    prefix = f"{header.metadata['general.architecture']}."
    return {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}


def _apply_heads(file: Path, settings: dict[str, Any], config: Any) -> None:
    """Set the width of a head, and the part of it that is rotated."""
    width = settings.get("attention.key_length") or config.hidden_size // config.num_attention_heads
    if settings.get("attention.value_length", width) != width:
        raise BaseModelError(f"{file} has keys and values of different widths, which is not supported")
    if hasattr(config, "head_dim"):
        config.head_dim = width
    rotated = settings.get("rope.dimension_count", width)
    if hasattr(config, "partial_rotary_factor") or "partial_rotary_factor" in config.rope_parameters:
        config.rope_parameters["partial_rotary_factor"] = config.partial_rotary_factor = rotated / width
    elif rotated != width:
        raise BaseModelError(f"{file} rotates {rotated} of {width} dimensions of a head, which is not supported")


def _apply_rope(file: Path, header: GgufHeader, settings: dict[str, Any], config: Any) -> None:
    """Set the scaling of the rotary position encoding."""
    if "rope_factors_long.weight" in header.shapes:
        raise BaseModelError(f"{file} has two sets of rotary frequencies (longrope), which is not supported")
    rope = config.rope_parameters
    if "rope.freq_base_swa" in settings and "sliding_attention" in rope:
        rope["sliding_attention"]["rope_theta"] = settings["rope.freq_base_swa"]
    rope = rope.get("full_attention", rope)  # Gemma 3 scales the frequencies of its global layers
    rope["rope_theta"] = settings.get("rope.freq_base", rope["rope_theta"])
    if _ROPE_DIVISORS in header.shapes:
        rope.update(_llama3_settings(file, rope["rope_theta"]))
        return
    kind, factor = settings.get("rope.scaling.type", "linear"), settings.get("rope.scaling.factor")
    factor = factor or settings.get("rope.scale_linear") or 1.0
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return
    if kind not in ("linear", "yarn"):
        raise BaseModelError(f"{file} scales its rotary frequencies as {kind!r}; linear, yarn and llama3 are supported")
    rope.update(rope_type=kind, factor=factor)
    if kind == "yarn":
        rope["original_max_position_embeddings"] = settings.get(
            "rope.scaling.original_context_length", config.max_position_embeddings
        )
        rope["beta_fast"] = settings.get("rope.scaling.yarn_beta_fast", 32.0)
        rope["beta_slow"] = settings.get("rope.scaling.yarn_beta_slow", 1.0)


def _llama3_settings(file: Path, theta: float) -> dict[str, Any]:
    """Return the settings of Llama 3's scaling, of which a GGUF file states only the divisors of the frequencies.

    Raises:
        BaseModelError: the divisors are not those of Llama 3's scaling.
    """
    import numpy as np
    from gguf import GGUFReader

    (tensor,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == _ROPE_DIVISORS)
    divisors = np.asarray(tensor.data, dtype=np.float64)
    factor = round(float(divisors.max()), 4)
    for power in range(4, _MAX_ORIGINAL_LENGTH):
        found = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1 << power,
        }
        if np.allclose(_llama3_divisors(len(divisors), theta, factor, 1 << power), divisors, rtol=1e-4):
            return found
    raise BaseModelError(f"{file} has rotary frequencies of its own ({_ROPE_DIVISORS}), which is not supported")


def _llama3_divisors(count: int, theta: float, factor: float, original_length: int) -> "np.ndarray":
    """Return the divisors of the frequencies in Llama 3's scaling with its usual bounds, 1 and 4 periods."""
    import numpy as np

    periods = original_length * theta ** (-np.arange(count) / count) / (2 * math.pi)
    smooth = np.clip((periods - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    scaled: np.ndarray = 1.0 / ((1.0 - smooth) / factor + smooth)
    return scaled
