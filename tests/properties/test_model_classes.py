"""A sample of benchmarks/model_classes.py: a method of each kind on a tiny model of one class of each kind."""

import sys
from pathlib import Path

import pytest
from model_cells import check_cell, live_modules

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import model_classes

sys.path.pop(0)

SAMPLE = {
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "marian": "MarianMTModel",
    "distilbert": "DistilBertForQuestionAnswering",
    "albert": "AlbertModel",
    "segformer": "SegformerForSemanticSegmentation",
    "wav2vec2": "Wav2Vec2ForCTC",
    "clip": "CLIPModel",
    "mamba": "MambaForCausalLM",
}


METHODS = ("lora", "prompt_tuning", "prefix_tuning", "full")
"""A method of each kind; `make soak` tries all on all classes."""


@pytest.mark.parametrize("model_type", SAMPLE)
def test_methods_on_classes_of_other_kinds(model_type):
    model, inputs = model_classes.tiny(model_type, SAMPLE[model_type])
    live = live_modules(model, inputs)
    outcomes = {cell: check_cell(model, inputs, cell, live) for cell in METHODS}
    assert {cell: outcome.reason for cell, outcome in outcomes.items() if outcome.kind == "fault"} == {}
    assert {"lora", "full"} <= {cell for cell, outcome in outcomes.items() if outcome.kind == "passes"}


@pytest.mark.parametrize(
    ("model_type", "class_name", "cell", "reason"),
    [
        ("falcon", "FalconForCausalLM", "prefix_tuning", ""),  # one head of keys and values
        ("jamba", "JambaForCausalLM", "prefix_tuning", "keys and values of one size"),  # layers of a state space
        ("deepseek_v3", "DeepseekV3ForCausalLM", "prefix_tuning", "keys and values of one size"),
        ("cohere_asr", "CohereAsrModel", "prefix_tuning", "called with tokens alone"),
        ("lilt", "LiltForTokenClassification", "prompt_tuning", "bbox"),
    ],
)
def test_a_model_whose_layers_take_no_prompt_is_refused_in_one_line(model_type, class_name, cell, reason):
    model, inputs = model_classes.tiny(model_type, class_name)
    outcome = check_cell(model, inputs, cell, live_modules(model, inputs))
    assert outcome.kind == ("refused" if reason else "passes"), outcome
    assert reason in outcome.reason
    assert "lora works on" in outcome.reason or not reason
