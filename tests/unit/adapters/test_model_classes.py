"""Adapters on models without one of the four tasks: their files name the class with which they and merged models open."""

import copy
import json

import peft
import pytest
import torch
from other_models import other_model, values_of
from references import assert_close
from tiny import perturb
from tiny_tasks import tiny_tokenizer
from transformers import ModernBertConfig, ModernBertForMaskedLM

from peftly import LoRA, attach, load, load_adapter, load_base, save_adapter, save_merged, trainable_parameters
from peftly.adapters import AdapterFolder
from peftly.errors import BaseModelError, MethodError
from peftly.methods import METHODS

CLASSES = {
    "BertModel": ("FEATURE_EXTRACTION", None, None),
    "LlamaModel": ("FEATURE_EXTRACTION", None, None),
    "ViTModel": ("FEATURE_EXTRACTION", None, None),
    "T5EncoderModel": (None, "T5EncoderModel", None),
    "BertForQuestionAnswering": ("QUESTION_ANS", None, ["qa_outputs"]),
    "BertForNextSentencePrediction": (None, "BertForNextSentencePrediction", ["cls"]),
    "Wav2Vec2ForCTC": (None, "Wav2Vec2ForCTC", ["lm_head"]),
    "ViTForImageClassification": (None, "ViTForImageClassification", ["classifier"]),
    "Qwen2VLForConditionalGeneration": ("CAUSAL_LM", None, None),
    "WhisperForConditionalGeneration": ("SEQ_2_SEQ_LM", None, None),
}


def trained(name):
    """Return a copy of a base, the adapted model, and inputs."""
    model, inputs = other_model(name)
    base = copy.deepcopy(model)
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    return base, model, inputs


@pytest.mark.parametrize("name", CLASSES)
def test_peft_reads_our_file_and_we_read_it(name, tmp_path):
    base, model, inputs = trained(name)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    mapping = config["auto_mapping"] and config["auto_mapping"]["base_model_class"]
    assert (config["task_type"], mapping, config["modules_to_save"]) == CLASSES[name]
    expected = values_of(model, inputs)
    assert_close(values_of(load_adapter(copy.deepcopy(base), tmp_path), inputs), expected)
    assert_close(values_of(peft.PeftModel.from_pretrained(base, tmp_path).base_model.model, inputs), expected)


@pytest.mark.parametrize("name", ["BertModel", "LlamaModel", "ViTModel"])
def test_a_file_of_peft_without_modules_to_save(name, tmp_path):
    base, inputs = other_model(name)
    task = "FEATURE_EXTRACTION" if name.endswith("Model") else None
    target = "query" if name.startswith("Bert") else "q_proj"
    settings = peft.LoraConfig(task_type=task, target_modules=[target], r=2, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), settings).eval()
    model.save_pretrained(tmp_path)
    assert_close(values_of(load_adapter(base, tmp_path), inputs), values_of(model.base_model.model, inputs))


def base_folder(name, folder, tokenizer="bert"):
    model, inputs = other_model(name)
    vocabulary = tiny_tokenizer(tokenizer)
    model.resize_token_embeddings(len(vocabulary))
    model.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return model, inputs


@pytest.mark.parametrize(
    ("stored", "opened_as"),
    [
        ("BertForMaskedLM", "AutoModel"),
        ("BertForMaskedLM", "AutoModelForQuestionAnswering"),
        ("BertForMaskedLM", "BertForNextSentencePrediction"),
        ("LlamaForSequenceClassification", "AutoModel"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has no weights for")
def test_an_adapter_opens_its_base_with_its_own_class(stored, opened_as, tmp_path):
    """Otherwise with the class that the base's config names, whose paths differ."""
    _, inputs = base_folder(stored, tmp_path / "base")
    model = load_base(str(tmp_path / "base"), dtype="float32", model_class=opened_as, seed=3).model
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    again = load(tmp_path / "adapter", dtype="float32").model
    assert type(again) is type(model)
    assert_close(values_of(again, inputs), values_of(model, inputs))


def test_an_unknown_class_is_refused(tmp_path):
    base_folder("BertForMaskedLM", tmp_path)
    with pytest.raises(BaseModelError, match="model_class='PreTrainedTokenizer' is no class of models"):
        load_base(str(tmp_path), model_class="PreTrainedTokenizer")
    with pytest.raises(BaseModelError, match="leave task and labels out"):
        load_base(str(tmp_path), model_class="AutoModel", task="token_classification")


def test_a_class_that_transformers_lacks_is_not_required(tmp_path):
    _, model, _ = trained("ViTForImageClassification")
    model.name_or_path = model.config.name_or_path = "some/base"
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "MyModel", "parent_library": "mine"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert AdapterFolder.read(tmp_path).requirements.model_class is None


@pytest.mark.parametrize("method", ["adapter", "selective", "lora"])
@pytest.mark.filterwarnings("ignore:.*has no weights for")
def test_a_new_head_with_an_adapted_layer_in_it_is_trained_whole(method, tmp_path):
    """ModernBERT's has a LayerNorm, which Houlsby adapters train; the rest of the head was left as drawn."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    tokenizer = tiny_tokenizer("bert")
    ModernBertForMaskedLM(ModernBertConfig(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_base(str(tmp_path), dtype="float32", task="sequence_classification", labels=["a", "b"]).model
    attach(model, METHODS[method].config())
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    inputs = {"input_ids": torch.tensor([[1, 9, 8, 2]])}
    assert_close(values_of(load(tmp_path / "adapter", dtype="float32").model, inputs), values_of(model, inputs))


def test_a_merged_multimodal_model_is_read_back_with_its_own_class(tmp_path):
    """By `AutoModelForCausalLM` it could not be opened, after all the work."""
    base_folder("Qwen2VLForConditionalGeneration", tmp_path / "base", "llama")
    model = load_base(str(tmp_path / "base"), dtype="float32").model
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    parity = save_merged(tmp_path / "adapter", tmp_path / "merged")
    assert parity.complaint is None
    assert parity.files == 0


def test_a_model_of_sounds_is_not_merged_on_texts(tmp_path):
    base_folder("WhisperForConditionalGeneration", tmp_path / "base", "t5")
    model = load_base(str(tmp_path / "base"), dtype="float32").model
    save_adapter(attach(model, LoRA(rank=2)), tmp_path / "adapter")
    with pytest.raises(MethodError, match=r"reads input_features; merge it with peftly.merge\(model\)"):
        save_merged(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
