"""The same configuration in PEFT and here selects the same layers, and trains as many parameters."""

import warnings

import peft
import pytest
import torch
from peft.utils import constants
from tiny import tiny_model

import peftly
from peftly.peft.config import PEFT_TYPE_TO_CONFIG_MAPPING
from peftly.peft.default_targets import IA3_FEEDFORWARD, IA3_TARGETS, LORA_TARGETS
from peftly.peft.translation import method_of

ARGUMENTS = [
    ("LORA", {}),
    ("LORA", {"r": 2, "target_modules": "all-linear"}),
    ("LORA", {"target_modules": r".*\.(q|q_proj|query_key_value|c_attn|query)"}),
    ("LORA", {"use_dora": True, "bias": "lora_only"}),
    ("LORA", {"layers_to_transform": [1], "init_lora_weights": "pissa", "r": 2}),
    ("IA3", {}),
    ("PROMPT_TUNING", {"num_virtual_tokens": 3}),
    ("P_TUNING", {"num_virtual_tokens": 3, "encoder_hidden_size": 6, "encoder_reparameterization_type": "LSTM"}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 3}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 6}),
]
MODELS = {"llama": "CAUSAL_LM", "bloom": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm", "SEQ_CLS": "sequence_classification"}


@pytest.mark.parametrize(("family", "task"), MODELS.items())
@pytest.mark.parametrize(("peft_type", "arguments"), ARGUMENTS)
def test_as_many_parameters_are_trained_as_in_peft(family, task, peft_type, arguments):
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    if task == "SEQ_CLS" and peft_type == "PREFIX_TUNING":
        pytest.skip("PEFT has no prefixes for this BERT")
    model, theirs = (tiny_model(family, torch.float32, task=TASKS[task]) for _ in "ab")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peftly.attach(model, method_of(kind(task_type=task, **arguments), model))
        theirs = peft.get_peft_model(theirs, getattr(peft, kind.__name__)(task_type=task, **arguments))
    trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model).values())
    expected, _ = theirs.get_nb_trainable_parameters()
    if task == "SEQ_2_SEQ_LM" and "virtual" in str(arguments) and peft_type in ("PROMPT_TUNING", "P_TUNING"):
        # PEFT has a second prompt, for the decoder, that it never uses.
        expected -= arguments["num_virtual_tokens"] * model.config.d_model
    assert trained == expected


def test_the_layers_by_model_type_are_those_of_peft():
    assert dict(LORA_TARGETS) == constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert dict(IA3_TARGETS) == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    assert dict(IA3_FEEDFORWARD) == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING


@pytest.mark.parametrize("kind", PEFT_TYPE_TO_CONFIG_MAPPING.values(), ids=lambda kind: kind.__name__)
def test_arguments_and_defaults_are_those_of_peft(kind):
    assert list(kind().to_dict().items()) == list(getattr(peft, kind.__name__)().to_dict().items())
