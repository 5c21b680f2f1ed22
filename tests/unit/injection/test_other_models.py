"""Models of other classes than language models and text classifiers: their heads, the direction of their attention and
the places where adapters can and cannot go."""

import re

import pytest
import torch
from other_models import MODELS, other_model, values_of
from tiny import perturb
from tiny_configs import tiny_configs
from torch import nn
from transformers import BertConfig, BertModel, BridgeTowerModel, PreTrainedModel

from peftly import LoRA, PrefixTuning, PromptTuning, attach, detach, trainable_parameters
from peftly.errors import MethodError
from peftly.injection import calls_blocks_of, copied_modules, embedding_in, output_heads, role_of, text_stack
from peftly.models import is_encoder

ROLES = {
    "BertModel": "encoder",
    "LlamaModel": "decoder",
    "MPNetModel": "encoder",
    "T5EncoderModel": "encoder",
    "WhisperForConditionalGeneration": "source",
    "WhisperForAudioClassification": "encoder",
    "Gemma3ForConditionalGeneration": "decoder",
    "LlavaForConditionalGeneration": "decoder",
    "Qwen2VLForConditionalGeneration": "decoder",
    "DebertaV2ForTokenClassification": "encoder",
    "T5ForTokenClassification": "encoder",
    "BertForMaskedLM": "encoder",
    "LlamaForSequenceClassification": "decoder",
}
HEADS = {
    "BertModel": [],
    "CLIPModel": [],
    "T5EncoderModel": [],
    "Wav2Vec2Model": [],
    "Wav2Vec2ForCTC": ["lm_head"],
    "Wav2Vec2ForXVector": ["projector", "tdnn.0", "tdnn.1", "feature_extractor", "classifier", "objective"],
    "CLIPForImageClassification": ["classifier"],
    "BertForQuestionAnswering": ["qa_outputs"],
    "BertForNextSentencePrediction": ["cls"],
    "BertForMaskedLM": ["cls.predictions.decoder"],
    "WhisperForAudioClassification": ["projector", "classifier"],
    "WhisperForConditionalGeneration": ["proj_out"],
    "VisionEncoderDecoderModel": ["decoder.cls.predictions.decoder"],
    "PatchTSTForPrediction": ["head"],
}


@pytest.mark.parametrize("name", ROLES)
def test_the_direction_of_attention_is_that_of_the_text(name):
    model, _ = other_model(name)
    assert role_of(model) == ROLES[name]
    if not model.config.is_encoder_decoder:
        assert is_encoder(model.config) == (ROLES[name] == "encoder")


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_what_a_class_adds_to_its_body(name):
    assert output_heads(other_model(name)[0]) == HEADS[name]


@pytest.mark.parametrize("name", MODELS)
def test_lora_with_default_targets(name):
    """Bodies were refused, or trained as whole copies; models without text failed at every forward."""
    model, inputs = other_model(name)
    before = values_of(model, inputs)
    attach(model, LoRA(rank=2))
    assert torch.equal(values_of(model, inputs), before)
    perturb(trainable_parameters(model).values())
    assert not torch.allclose(values_of(model, inputs), before)
    copies = copied_modules(model, "default")
    language_model = model.get_output_embeddings() is not None
    assert copies == ([] if language_model else HEADS.get(name, copies))
    detach(model)
    assert torch.equal(values_of(model, inputs), before)


def test_a_body_has_the_parameters_of_its_targets_only():
    model, _ = other_model("BertModel")
    attach(model, LoRA(rank=8, target_modules=("query", "value")))
    assert sum(parameter.numel() for parameter in trainable_parameters(model).values()) == 2 * 2 * 8 * (32 + 32)


class _OwnClassifier(PreTrainedModel):
    """A model of somebody's own class around a body."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = BertModel(config)
        self.scorer = nn.Linear(config.hidden_size, 2)


def test_the_head_of_a_model_of_an_own_class():
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    assert output_heads(_OwnClassifier(config)) == ["scorer"]


def _accepts_tokens(model):
    is_composite = getattr(model.config, "text_config", None) is not None
    return model.main_input_name == "input_ids" and isinstance(embedding_in(model), nn.Embedding) and not is_composite


@pytest.mark.parametrize("name", MODELS)
def test_soft_prompts_work_or_are_refused_at_attach(name):
    model, inputs = other_model(name)
    before = values_of(model, inputs)
    if not _accepts_tokens(model):
        with pytest.raises(MethodError, match=r"virtual tokens .*; lora works on any model with linear layers"):
            attach(model, PromptTuning(num_virtual_tokens=2, init="random"))
        assert torch.equal(values_of(model, inputs), before)
        return
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"))
    after = values_of(model, inputs)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)


PREFIXES = {
    "WhisperForConditionalGeneration": None,
    "VisionEncoderDecoderModel": None,
    "LlavaForConditionalGeneration": None,
    "Qwen2VLForConditionalGeneration": None,
    "LlamaModel": None,
    "BertModel": None,
    "Gemma3ForConditionalGeneration": "computes the masks of its layers itself; lora works on it",
    "T5EncoderModel": "has none; prompt_tuning and lora work on it",
    "ViTModel": "has none; lora works on it",
    "CLIPModel": "has none; lora works on it",
    "Wav2Vec2ForCTC": "has none; lora works on it",
}


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_work_or_are_refused_at_attach(name):
    model, inputs = other_model(name)
    before = values_of(model, inputs)
    if (refusal := PREFIXES[name]) is not None:
        with pytest.raises(MethodError, match=re.escape(refusal)):
            attach(model, PrefixTuning(num_virtual_tokens=2, init="random"))
    else:
        attach(model, PrefixTuning(num_virtual_tokens=2, init="random"))
        after = values_of(model, inputs)
        assert after.shape == before.shape
        assert not torch.allclose(after, before)
        detach(model)
    assert torch.equal(values_of(model, inputs), before)


@pytest.mark.parametrize("name", ["WhisperForConditionalGeneration", "VisionEncoderDecoderModel"])
@pytest.mark.parametrize("config", [LoRA(rank=2), PrefixTuning(num_virtual_tokens=2, init="random")])
def test_a_decoder_behind_an_encoder_without_text_generates(name, config):
    """With and without a cache. The hooks looked for an embedding of token ids in the encoder."""
    model, inputs = other_model(name)
    main = {model.main_input_name: inputs[model.main_input_name]}
    attach(model, config)
    perturb(trainable_parameters(model).values(), scale=0.3)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    with torch.no_grad():
        assert torch.equal(model.generate(**main, **settings), model.generate(**main, **settings, use_cache=False))


def test_a_prefix_moves_positions_in_three_dimensions():
    """Of a text with images: the positions of Qwen2-VL were dropped where the call had a mask."""
    model, inputs = other_model("Qwen2VLForConditionalGeneration")
    attach(model, PrefixTuning(num_virtual_tokens=3, init="random"))
    positions = torch.tensor([0, 1, 1, 2, 2, 3, 4]).expand(3, 2, -1)
    with torch.no_grad():
        masked = model(**inputs, position_ids=positions).logits
        plain = model(input_ids=inputs["input_ids"], position_ids=positions).logits
        others = model(**inputs).logits
    torch.testing.assert_close(masked, plain)
    assert not torch.allclose(masked, others, atol=1e-3)


@pytest.mark.parametrize("settings", [PrefixTuning(num_virtual_tokens=2), PromptTuning(num_virtual_tokens=2)])
def test_nothing_is_inserted_into_a_stack_that_is_never_called(settings):
    model = BridgeTowerModel(next(tiny_configs("bridgetower")))
    with pytest.raises(MethodError, match=r"lora works|its stack"):
        attach(model, settings)


def test_a_stack_whose_blocks_somebody_else_calls_is_known():
    assert calls_blocks_of(*_with_text_stack(BridgeTowerModel(next(tiny_configs("bridgetower")))))
    for name in MODELS:
        model, stack = _with_text_stack(other_model(name)[0])
        assert stack is None or not calls_blocks_of(model, stack), name


def _with_text_stack(model):
    return model, text_stack(model, role_of(model))
