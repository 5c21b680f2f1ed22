"""A merged model as one GGUF file: its shape, tokenizer and weights, as llama.cpp's own converter writes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters import CONFIG, attached, check_mergeable, load, merge_adapters
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting._gguf_tokenizer import add_tokenizer
from peftly.exporting._request import Request
from peftly.injection import dequantize
from peftly.models import WHEEL_BASES, load_base

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "write_gguf", "write_model"]

DTYPES = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
"""What matrices can be written in, and what GGUF calls such a file; vectors are always in f32."""

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_PERMUTED = ("llama",)
"""Those of which GGUF has the two halves of each query and key woven into each other."""
_DIVIDES_FREQUENCIES = ("llama",)
"""Those for which llama.cpp reads `rope_freqs`; for others it would leave it aside without a word."""


def write_gguf(request: Request) -> list[str]:
    """Write a base, or a base with an adapter merged into it, as a GGUF file.

    Raises:
        AdapterError: the adapter cannot be opened.
        BaseModelError: the base cannot be opened, or is of a kind that is not supported.
        MethodError: the adapter cannot be merged.
    """
    assert request.dtype is not None
    model, tokenizer, merged = _merged(request.source)
    file = f"{request.out.name}-{request.dtype}.gguf"
    notes = write_model(request.folder / file, model, tokenizer, request.dtype, name=request.out.name)
    return [*merged, *notes, f"try it: llama-cli -m {request.out / file}"]


def write_model(
    file: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", dtype: str, *, name: str
) -> list[str]:
    """Write a causal language model to a GGUF file, which is complete only when this returns.

    Args:
        file: to write.
        model: of a supported architecture, without adapters.
        tokenizer: its own.
        dtype: a name in `DTYPES`.
        name: what the file calls the model.

    Returns:
        What the file cannot say.

    Raises:
        BaseModelError: GGUF has no room for something that the model does; nothing has been written.
    """
    from gguf import GGUFWriter

    architecture = _ARCHITECTURES.get(type(model).__name__)
    if architecture is None:
        raise BaseModelError(
            f"a {type(model).__name__} cannot be written to GGUF: {', '.join(_ARCHITECTURES)} can; "
            "for others merge the adapter and use llama.cpp's converter"
        )
    writer = GGUFWriter(file, architecture)
    _add_shape(writer, model.config, name)
    _add_rope(writer, model.config, architecture)
    rows = model.get_input_embeddings().weight.shape[0]
    notes = add_tokenizer(writer, tokenizer, rows, bos=_one_id(model.config.bos_token_id))
    writer.add_vocab_size(rows)
    _add_weights(writer, model, architecture, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return notes


def _merged(source: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]":
    """Return a model with no adapter left on it, in fp32, its tokenizer, and what to know of the merge."""
    if _is_base(source):
        model, tokenizer = load_base(source, dtype="float32", device="cpu")
        return dequantize(model), tokenizer, []
    model, tokenizer = load(source, dtype="float32", device="cpu")
    dequantize(model)
    check_mergeable(model, attached(model))
    return model, tokenizer, merge_adapters(model, attached(model))


def _is_base(source: str) -> bool:
    """Whether something to be exported is a base alone, by what is in its folder.

    Raises:
        AdapterError: a model and an adapter lie there together.
    """
    path = Path(source).expanduser()
    if source in WHEEL_BASES or path.suffix == ".gguf":
        return True
    has_model, has_adapter = (path / "config.json").is_file(), (path / CONFIG).is_file()
    if has_model and has_adapter and any(path.glob("model*.safetensors")):
        raise AdapterError(f"{source} holds a model and an adapter: move the one that is not meant to another folder")
    return has_model and not has_adapter  # trainers put the base's config.json beside an adapter, too


def _add_shape(writer: Any, config: Any, name: str) -> None:
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
    """Add how positions are encoded; frequencies that were changed one by one become a tensor of divisors."""
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
    odd = sorted(key for key, value in rope.items() if value is not None and key not in known.get(kind, ()))
    if kind not in known or odd:
        what = f"rope type {kind!r}" + (f" with {', '.join(odd)}" if odd else "")
        raise BaseModelError(f"{what} cannot be written to GGUF for {architecture}; {', '.join(known)} can")
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
    """Return by what each frequency is divided, (head_dim / 2,)."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    changed, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    powers = torch.arange(0, 2 * len(changed), 2, dtype=torch.float32) / (2 * len(changed))
    plain = 1.0 / config.rope_parameters["rope_theta"] ** powers
    divisors: np.ndarray = (plain / changed).float().numpy()
    return divisors


def _add_weights(writer: Any, model: "PreTrainedModel", architecture: str, dtype: str) -> None:
    import gguf

    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    config, heads = model.config, {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    # A head that is tied to the embedding is the same parameter, and named once.
    for path, tensor in model.named_parameters():
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None or not tensor.is_floating_point():
            reason = f"has no name in a GGUF file of {architecture}" if name is None else "is quantised"
            raise BaseModelError(f"{path} {reason}: give a base as it was published, without quantisation")
        layer = path.split(".")[-2]
        if architecture in _PERMUTED and layer in heads:
            tensor = _woven(tensor, getattr(config, heads[layer]))
        _add_tensor(writer, name, tensor, dtype)
    writer.add_file_type(gguf.LlamaFileType[DTYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _woven(tensor: "Tensor", heads: int) -> "Tensor":
    """Return the rows of a query or key projection with the two halves of each head woven into each other."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _add_tensor(writer: Any, name: str, tensor: "Tensor", dtype: str) -> None:
    """Add a tensor: vectors in f32; matrices whose rows are not whole blocks in f16 where q8_0 is asked for."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, quantize

    numbers = tensor.detach().float().cpu().numpy()
    kind = GGMLQuantizationType[dtype.upper() if tensor.ndim > 1 else "F32"]
    with np.errstate(over="ignore"):
        try:
            packed = quantize(numbers, kind)
        except QuantError:
            kind = GGMLQuantizationType.F16
            packed = quantize(numbers, kind)
    if kind == GGMLQuantizationType.F16 and not np.isfinite(packed).all():
        raise BaseModelError(f"{name} has numbers that f16 cannot hold: choose dtype bf16 or f32")
    writer.add_tensor(name, packed, raw_dtype=kind)


def _one_id(ids: Any) -> int | None:
    return ids if isinstance(ids, int) else None
