"""Tiny models of other kinds than language models and classifiers of text, with inputs for a forward pass."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = _SIZES | {"vocab_size": 99, "max_position_embeddings": 64, "pad_token_id": 0}
_GROUPED = _TEXT | {"num_key_value_heads": 1, "head_dim": 16}
_IMAGE = _SIZES | {"image_size": 16, "patch_size": 8}
_SOUND = _SIZES | {
    "vocab_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "tdnn_dim": (16, 16),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 16,
}
_WHISPER = {
    "vocab_size": 99,
    "num_mel_bins": 8,
    "d_model": 32,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "num_labels": 3,
} | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 2))
}
_T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
_PATCHES = {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4}
_SEGMENTS = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 1, 2], "num_labels": 3}


def _text(columns: int = 7) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 90, (2, columns), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _gemma3() -> tf.PreTrainedModel:
    image = _SIZES | {"image_size": 16, "patch_size": 4}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 98, "boi_token_index": 96, "eoi_token_index": 97}
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=_GROUPED, vision_config=image, **tokens))


def _qwen2_vl() -> tf.PreTrainedModel:
    image = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    text = _TEXT | {"num_key_value_heads": 1, "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2}
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=text, vision_config=image))


def _llava() -> tf.PreTrainedModel:
    parts = {"text_config": tf.LlamaConfig(**_GROUPED), "vision_config": tf.CLIPVisionConfig(**_IMAGE)}
    return tf.LlavaForConditionalGeneration(tf.LlavaConfig(**parts, image_token_id=98))


def _image_text() -> tf.PreTrainedModel:
    decoder = tf.BertConfig(**_TEXT, is_decoder=True, add_cross_attention=True)
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**_IMAGE), decoder)
    config.update({"decoder_start_token_id": 1, "pad_token_id": 0})
    return tf.VisionEncoderDecoderModel(config=config)


Make = Callable[[], Any]
_CLIP = {"text_config": _TEXT, "vision_config": _IMAGE, "projection_dim": 16}

MODELS: dict[str, tuple[Make, Make]] = {
    "BertModel": (lambda: tf.BertModel(tf.BertConfig(**_TEXT)), _text),
    "LlamaModel": (lambda: tf.LlamaModel(tf.LlamaConfig(**_GROUPED)), _text),
    "MPNetModel": (lambda: tf.MPNetModel(tf.MPNetConfig(**_TEXT)), _text),
    "ViTModel": (lambda: tf.ViTModel(tf.ViTConfig(**_IMAGE)), lambda: {"pixel_values": _values(2, 3, 16, 16)}),
    "CLIPModel": (
        lambda: tf.CLIPModel(tf.CLIPConfig(**_CLIP)),
        lambda: _text() | {"pixel_values": _values(2, 3, 16, 16)},
    ),
    "T5EncoderModel": (lambda: tf.T5EncoderModel(tf.T5Config(**_T5)), _text),
    "Wav2Vec2Model": (
        lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(**_SOUND)),
        lambda: {"input_values": _values(2, 800)},
    ),
    "Wav2Vec2ForCTC": (
        lambda: tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**_SOUND)),
        lambda: {"input_values": _values(2, 800)},
    ),
    "HubertForSequenceClassification": (
        lambda: tf.HubertForSequenceClassification(tf.HubertConfig(**_SOUND, num_labels=3)),
        lambda: {"input_values": _values(2, 800)},
    ),
    "Wav2Vec2ForXVector": (
        lambda: tf.Wav2Vec2ForXVector(tf.Wav2Vec2Config(**_SOUND)),
        lambda: {"input_values": _values(2, 800)},
    ),
    "ViTForImageClassification": (
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**_IMAGE, num_labels=3)),
        lambda: {"pixel_values": _values(2, 3, 16, 16)},
    ),
    "CLIPForImageClassification": (
        lambda: tf.CLIPForImageClassification(tf.CLIPConfig(**_CLIP, num_labels=3)),
        lambda: {"pixel_values": _values(2, 3, 16, 16)},
    ),
    "SegformerForImageClassification": (
        lambda: tf.SegformerForImageClassification(tf.SegformerConfig(**_SEGMENTS)),
        lambda: {"pixel_values": _values(1, 3, 64, 64)},
    ),
    "PatchTSTForPrediction": (
        lambda: tf.PatchTSTForPrediction(tf.PatchTSTConfig(**_PATCHES, d_model=16, ffn_dim=32, num_hidden_layers=2)),
        lambda: {"past_values": _values(2, 16, 2)},
    ),
    "WhisperForConditionalGeneration": (
        lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(**_WHISPER)),
        lambda: {"input_features": _values(2, 8, 40), "decoder_input_ids": _text(4)["input_ids"]},
    ),
    "WhisperForAudioClassification": (
        lambda: tf.WhisperForAudioClassification(tf.WhisperConfig(**_WHISPER)),
        lambda: {"input_features": _values(2, 8, 40)},
    ),
    "VisionEncoderDecoderModel": (
        _image_text,
        lambda: {"pixel_values": _values(2, 3, 16, 16), "decoder_input_ids": _text(4)["input_ids"]},
    ),
    "Gemma3ForConditionalGeneration": (_gemma3, _text),
    "LlavaForConditionalGeneration": (_llava, _text),
    "Qwen2VLForConditionalGeneration": (_qwen2_vl, _text),
    "BertForQuestionAnswering": (lambda: tf.BertForQuestionAnswering(tf.BertConfig(**_TEXT)), _text),
    "BertForNextSentencePrediction": (lambda: tf.BertForNextSentencePrediction(tf.BertConfig(**_TEXT)), _text),
    "BertForMaskedLM": (lambda: tf.BertForMaskedLM(tf.BertConfig(**_TEXT)), _text),
    "DebertaV2ForTokenClassification": (
        lambda: tf.DebertaV2ForTokenClassification(tf.DebertaV2Config(**_TEXT, num_labels=3)),
        _text,
    ),
    "T5ForTokenClassification": (lambda: tf.T5ForTokenClassification(tf.T5Config(**_T5, num_labels=3)), _text),
    "LlamaForSequenceClassification": (
        lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**_GROUPED, num_labels=1)),
        _text,
    ),
}
"""Function that makes a model, and function that makes its inputs, by the name of the class."""


def other_model(name: str) -> tuple[tf.PreTrainedModel, dict[str, torch.Tensor]]:
    """Return a tiny model of this class with random weights, in evaluation mode, and inputs for it."""
    make, inputs = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, inputs()


def values_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return all numbers that a model computes for its inputs, one after the other, but not its caches."""
    with torch.no_grad():
        output = model(**inputs)
    found = [value for key, value in output.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return torch.cat([value.flatten() for value in found])
