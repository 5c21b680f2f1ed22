"""A tiny configuration of any class of transformers: the same architecture with few, narrow layers and few tokens."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["tiny_configs"]

VOCABULARY = 160
FIRST_SPECIAL = 120
"""Ids from here on are for special tokens (images, sounds); texts have smaller ones."""
WIDTH, HEADS, HEAD_DIM, LAYERS = 64, 4, 16, 2

_SIZES = {
    **dict.fromkeys(
        [
            *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim"),
            *("projection_dim", "out_hidden_size", "encoder_hidden_size", "decoder_hidden_size", "output_dim"),
            *("encoder_hidden_dim", "intermediate_size", "moe_intermediate_size", "ffn_dim", "d_ff", "n_inner"),
            *("encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "ffn_hidden_size", "dim_ff", "dff", "mlp_dim"),
            *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "decoder_intermediate_size"),
            *("text_hidden_size", "output_hidden_size", "classifier_proj_size", "xvector_output_dim", "d_inner"),
            *("cross_hidden_size", "hidden_size_per_layer_input", "lru_width", "embedding_dim", "d_embed"),
            *("pooler_hidden_size", "pooler_output_size", "shared_intermediate_size", "encoder_intermediate_size"),
        ],
        WIDTH,
    ),
    **dict.fromkeys(
        [
            *("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "num_head"),
            *("decoder_attention_heads", "encoder_num_attention_heads", "decoder_num_attention_heads"),
            *("num_attn_heads", "cross_num_attention_heads"),
        ],
        HEADS,
    ),
    **dict.fromkeys(
        ["head_dim", "d_kv", "attention_head_dim", "d_head", "cross_head_dim", "global_head_dim"], HEAD_DIM
    ),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], HEAD_DIM),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], WIDTH // 2),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts"], 2),
    **dict.fromkeys(
        ["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts"], 4
    ),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "attn_layer_offset", "expert_layer_offset"], 1),
    **dict.fromkeys(["attn_layer_period", "expert_layer_period"], 2),
    **dict.fromkeys(
        ["max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions"], 128
    ),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "index_head_dim"], HEAD_DIM),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads", "index_n_heads"], HEADS),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "n_mamba_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["emb_dim", "expert_ffn_hidden_size", "upsample_groups"], WIDTH),
    "rotary_dim": 8,
    "num_kv_shared_layers": 0,
    "moe_k": 2,
    "qk_head_dim": 2 * HEAD_DIM,
    "codebook_size": 32,
    "index_topk": 4,
    "index_kpool": 2,
    "sliding_window": 16,
    "num_queries": 5,
    "num_denoising": 2,
}
"""Sizes by the name of a setting."""

_KEY_VALUE_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "kv_n_heads", "cross_num_key_value_heads")
_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"),
    *("num_decoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "memory_attention_num_layers"),
    *("decoder_num_hidden_layers", "num_self_attends_per_block", "max_window_layers", "memory_fuser_num_layers"),
)
_INDEX_LISTS = (
    *("deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes", "window_block_indexes"),
    *("full_attn_idxs", "intermediate_layers_indices", "window_block_indices"),
    *("backbone_out_indices", "extract_layers", "moe_layers", "hybrid_layer_ids", "mlp_only_layers"),
    *("intermediate_hook_ids", "intermediate_hidden_state_indices", "global_attention_blocks"),
)
_COMMON_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "mask_token_id": 3,
    "unk_token_id": 4,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
    "forced_bos_token_id": 1,
}
_MISSING = {
    **{name: _COMMON_TOKENS[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    "vocab_size": VOCABULARY,
    "prediction_length": 8,
    "attn_layer_indices": [1],
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
}
"""Settings that some configurations leave open."""

_LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")
_MOST_LAYERS = 4


def tiny_configs(model_type: str) -> Iterator[PreTrainedConfig | Exception]:
    """Yield configurations of an architecture, the smallest first: not every architecture can be as narrow.

    Each may be invalid: the caller takes the first with which a model can be made and called. An exception of the class
    of the configuration is yielded instead of it.
    """
    for is_narrow in (True, False):
        try:
            yield _shrunk(CONFIG_MAPPING[model_type](), {}, is_narrow=is_narrow)
        except Exception as error:  # noqa: BLE001 -- of any class of transformers
            yield error


def _shrunk(config: PreTrainedConfig, tokens: dict[str, int], *, is_narrow: bool) -> PreTrainedConfig:
    """Return a smaller configuration of the same class; the configurations inside it are made smaller, too."""
    values = vars(config)  # not getattr, which refuses settings that differ between layers
    is_narrow = is_narrow and not isinstance(values.get("depths"), list | tuple)
    settings = {field.name: (values.get(field.name), field.default) for field in fields(config)}
    changes: dict[str, Any] = {}
    for name, (value, default) in settings.items():
        if isinstance(value, PreTrainedConfig):
            changes[name] = _shrunk(value, tokens, is_narrow=is_narrow)
        elif value is None and name in _MISSING:
            changes[name] = _MISSING[name]
        elif value is None and name == "head_dim" and is_narrow:
            changes[name] = HEAD_DIM
        elif (smaller := _smaller(name, value, values, tokens, is_narrow=is_narrow)) is not None:
            changes[name] = smaller
        elif isinstance(value, _PLAIN) and isinstance(default, _PLAIN) and value != default:
            changes[name] = value  # of a configuration inside another
    if "expand" in settings and "num_heads" in settings and is_narrow:
        changes |= {"num_heads": 2 * HEADS, "head_dim": HEAD_DIM}  # of a Mamba, as wide as the expanded state
    if "out_features" in settings and config.model_type:
        changes |= _stages(values)
    if values.get("is_encoder_decoder"):
        changes["decoder_start_token_id"] = _COMMON_TOKENS["decoder_start_token_id"]
    return type(config)(**changes)


def _smaller(name: str, value: Any, values: dict[str, Any], tokens: dict[str, int], *, is_narrow: bool) -> Any:
    """Return a smaller value of a setting, or None for a setting that stays."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _smaller_number(name, value, values, tokens, is_narrow=is_narrow)
    if isinstance(value, list | tuple) and value:
        return _smaller_list(name, value, values, is_narrow=is_narrow)
    if name == "rope_parameters" and "vocab_size" in values:
        value = value or {}
        sections = {"mrope_section": [HEAD_DIM // 2 - 4, 2, 2]} if is_narrow and "mrope_section" in value else {}
        is_nested = any(isinstance(inner, dict) for inner in value.values())
        lacks_base = not is_nested and value.get("rope_theta") is None
        return {**value, **(_ROPE if lacks_base else {}), **sections} if lacks_base or sections else None
    return None


def _smaller_number(name: str, value: int, values: dict[str, Any], tokens: dict[str, int], *, is_narrow: bool) -> Any:
    if name.endswith(("_token_id", "_token_index")):
        return _token(name, tokens)
    if name.endswith(("vocab_size", "n_words", "vocab_size_per_layer_input")) and name != "type_vocab_size":
        return min(value, VOCABULARY)
    if name in _LAYERS:
        return min(value, _layers(values))
    if name == "image_size" and not ("window_size" in values and "depths" in values):
        return _image_size(values, value)
    if name in _KEY_VALUE_HEADS and is_narrow and value > 1:
        return HEADS if value == values.get("num_attention_heads") else 2
    size = _SIZES.get(name, value) if is_narrow or name in _ANY_WIDTH else value
    return size if value > size else None


def _smaller_list(name: str, value: Any, values: dict[str, Any], *, is_narrow: bool) -> Any:
    if name == "image_size":
        return type(value)(_image_size(values, side) for side in value)
    if name == "depths":
        return type(value)([1] * len(value))
    if name in ("conv_dim", "tdnn_dim") and is_narrow:
        return [WIDTH // 2] * len(value)
    if name in _INDEX_LISTS:
        return list(range(min(len(value), _MOST_LAYERS)))
    if name in _LAYER_LISTS:
        kinds = list(dict.fromkeys(value))
        kinds += ["full_attention"] if kinds == ["linear_attention"] else []
        return (kinds + [kinds[-1]] * LAYERS)[: _layers(values)]
    return _WHOLE_LISTS.get(name)


_PLAIN = bool | str | int | float
_ROPE = {"rope_theta": 10_000.0, "rope_type": "default"}
_WHOLE_LISTS = {
    "eos_token_id": [2],
    "attn_layer_indices": [1],
    "cross_attention_layers": [1],
    "attention_types": [[["global", "local"], LAYERS // 2]],  # of GPT-Neo
}
_ANY_WIDTH = ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions")


def _token(name: str, tokens: dict[str, int]) -> int:
    name = name.replace("_token_index", "_token_id")
    return _COMMON_TOKENS[name] if name in _COMMON_TOKENS else tokens.setdefault(name, FIRST_SPECIAL + len(tokens))


def _layers(values: dict[str, Any]) -> int:
    """Return the number of layers: one of each kind, and more where a head reads the outputs of several layers."""
    lists = [values.get(name) for name in (*_INDEX_LISTS, "out_indices", "block_types")]
    read = [min(len(found), _MOST_LAYERS) for found in lists if isinstance(found, list | tuple)]
    kinds = [len(set(values[name])) for name in _LAYER_LISTS if isinstance(values.get(name), list | tuple)]
    return max(LAYERS, *read, *kinds, 0)


def _image_size(values: dict[str, Any], value: int) -> int:
    patch = values.get("patch_size", 16)
    patch = patch[0] if isinstance(patch, list | tuple) else patch if isinstance(patch, int) else 16
    return min(value, 64 if 64 % patch == 0 else 4 * patch)


def _stages(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a backbone that choose the stages whose outputs it returns."""
    indices = list(values.get("_out_indices") or values.get("out_indices") or [])
    if len(indices) < 2:
        return {}
    has_many_layers = any(name in values for name in _LAYERS) and "depths" not in values
    return {"out_indices": list(range(1, 1 + len(indices))) if has_many_layers else indices}
