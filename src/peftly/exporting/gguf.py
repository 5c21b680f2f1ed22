"""A merged model as one GGUF file: architecture, tokenizer and weights, as llama.cpp's own converter writes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import CONFIG, attached, check_mergeable, load, merge_adapters, open_adapters
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting.gguf_tensors import DTYPES, PERMUTED, add_tensor, interleaved, tensor_names
from peftly.exporting.gguf_tokenizer import add_tokenizer
from peftly.exporting.request import Request
from peftly.injection import dequantize
from peftly.models import WHEEL_BASES, check_links, load_base, pooling_of, resolve_base

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["write_gguf", "write_model"]

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_DIVIDES_FREQUENCIES = ("llama",)
"""Architectures for which llama.cpp reads `rope_freqs`; it ignores the tensor silently for others."""


def write_gguf(request: Request) -> list[str]:
    """Write a base, or a base with an adapter merged into it, as a GGUF file.

    Args:
        request: source, output folder and dtype.

    Returns:
        Notes for the user.

    Raises:
        AdapterError: the adapter cannot be opened.
        BaseModelError: the base cannot be opened, or its architecture is not supported.
        MethodError: the adapter cannot be merged.
    """
    assert request.dtype is not None
    model, tokenizer, merge_notes = _merged(request.source, request.base)
    file = f"{request.out.name}-{request.dtype}.gguf"
    notes = write_model(request.folder / file, model, tokenizer, request.dtype, name=request.out.name)
    return [*merge_notes, *notes, f"try it: llama-cli -m {request.out / file}"]


def write_model(
    file: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", dtype: str, *, name: str
) -> list[str]:
    """Write a causal language model to a GGUF file. The file is complete only after this function has returned.

    Args:
        file: path of the output file.
        model: model of a supported architecture, without adapters.
        tokenizer: tokenizer of the model.
        dtype: name of a dtype in `DTYPES`.
        name: name of the model in the file.

    Returns:
        Notes on properties of the model that the file cannot represent.

    Raises:
        BaseModelError: GGUF cannot represent the model; nothing has been written.
    """
    from gguf import GGUFWriter

    architecture = _ARCHITECTURES.get(type(model).__name__)
    if architecture is None:
        advice = "; for others merge the adapter and use llama.cpp's converter" if pooling_of(model) is None else ""
        raise BaseModelError(
            f"a {type(model).__name__} cannot be written to GGUF: {', '.join(_ARCHITECTURES)} can{advice}"
        )
    writer = GGUFWriter(file, architecture)
    _add_architecture(writer, model.config, name)
    _add_rope(writer, model.config, architecture)
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    notes = add_tokenizer(writer, tokenizer, vocabulary_size, bos=_single_id(model.config.bos_token_id))
    writer.add_vocab_size(vocabulary_size)
    _add_weights(writer, model, architecture, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return notes


def _merged(source: str, moved_base: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]":
    """Return the model in fp32 with its adapter merged, the tokenizer, and notes on the merge."""
    adapters = None if _is_base(source) else open_adapters(source, moved_base)
    base = resolve_base(source) if adapters is None else adapters.base
    check_links(base.name, base.source)
    if adapters is None:
        model, tokenizer = load_base(base, dtype="float32", device="cpu")
        return dequantize(model), tokenizer, []
    model, tokenizer = load(adapters, dtype="float32", device="cpu")
    dequantize(model)
    check_mergeable(model, attached(model))
    return model, tokenizer, merge_adapters(model, attached(model))


def _is_base(source: str) -> bool:
    """Return whether `source` is a base without an adapter, judged by the files in its folder.

    Raises:
        AdapterError: the folder holds a model and an adapter.
    """
    path = Path(source).expanduser()
    if source in WHEEL_BASES or path.suffix == ".gguf":
        return True
    has_model, has_adapter = (path / "config.json").is_file(), (path / CONFIG).is_file()
    if has_model and has_adapter and any(path.glob("model*.safetensors")):
        raise AdapterError(f"{source} holds a model and an adapter: move one of them to another folder")
    return has_model and not has_adapter  # some trainers save the base's config.json beside an adapter


def _add_architecture(writer: Any, config: Any, name: str) -> None:
    """Add the sizes of a model, after a check that GGUF knows its activation, biases and attention."""
    refused = {
        "hidden_act": config.hidden_act != "silu",
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "sliding_window": "sliding_attention" in (getattr(config, "layer_types", None) or ()),
    }
    for key, is_refused in refused.items():
        if is_refused:
            value = getattr(config, key)
            raise BaseModelError(f"{key}: {value} of a {config.model_type} model cannot be written to GGUF")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_rope(writer: Any, config: Any, architecture: str) -> None:
    """Add the rotary position encoding; frequencies that are scaled one by one become a tensor of divisors."""
    from gguf import RopeScalingType

    rope = dict(config.rope_parameters)
    kind, theta = rope.pop("rope_type", "default"), rope.pop("rope_theta")
    known: dict[str, set[str]] = {
        "default": set(),
        "linear": {"factor"},
        "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
    }
    if architecture in _DIVIDES_FREQUENCIES:
        known["llama3"] = {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    unknown = sorted(key for key, value in rope.items() if value is not None and key not in known.get(kind, ()))
    if kind not in known or unknown:
        setting = f"rope type {kind!r}" + (f" with {', '.join(unknown)}" if unknown else "")
        raise BaseModelError(f"{setting} cannot be written to GGUF for {architecture}; {', '.join(known)} can")
    writer.add_rope_freq_base(theta)
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _rope_divisors(config))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _rope_divisors(config: Any) -> "np.ndarray":
    """Return the divisor of each rotary frequency, (head_dim / 2,)."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    powers = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
    unscaled = 1.0 / config.rope_parameters["rope_theta"] ** powers
    divisors: np.ndarray = (unscaled / scaled).float().numpy()
    return divisors


def _add_weights(writer: Any, model: "PreTrainedModel", architecture: str, dtype: str) -> None:
    """Add every parameter under its name in GGUF.

    Raises:
        BaseModelError: GGUF has no name for a parameter, or a parameter is quantised.
    """
    import gguf

    names, config = tensor_names(architecture, model.config.num_hidden_layers), model.config
    # `named_parameters` yields an output head that is tied to the embedding once, as the embedding.
    for path, tensor in model.named_parameters():
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None or not tensor.is_floating_point():
            reason = f"has no name in a GGUF file of {architecture}" if name is None else "is quantised"
            raise BaseModelError(f"{path} {reason}: give a base as it was published, without quantisation")
        if architecture in PERMUTED:
            tensor = interleaved(tensor, path.split(".")[-2], config)
        add_tensor(writer, name, tensor, dtype)
    writer.add_file_type(gguf.LlamaFileType[DTYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _single_id(ids: Any) -> int | None:
    """Return a token id; None for several ids or none."""
    return ids if isinstance(ids, int) else None
