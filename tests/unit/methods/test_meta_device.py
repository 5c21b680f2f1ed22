"""Adapters on models without weights, for counting their parameters."""

import pytest
import torch
from tiny import TASKS, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from peftly import attach, trainable_parameters
from peftly.methods import METHODS

AUTO = {
    "causal_lm": AutoModelForCausalLM,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "sequence_classification": AutoModelForSequenceClassification,
}
BASES = [(task, architecture) for task in AUTO for architecture in TASKS[task]]


def count(task, architecture, config, device):
    """Return the number of trained parameters, or None where the method does not support the model."""
    with torch.device(device):
        model = AUTO[task].from_config(tiny_config(architecture))
        if METHODS[config.name].adapter.unsupported_reason(model) is not None:
            return None
        attach(model, config)
    parameters = trainable_parameters(model).values()
    assert {parameter.device.type for parameter in parameters} == {device}
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_counted_without_weights(name):
    """Prefix tuning failed in `Tensor.item()`."""
    settings = {"init": "random"} if name in ("prompt_tuning", "prefix_tuning") else {}
    config = METHODS[name].config(**settings)
    task, architecture = "sequence_classification", "bert"
    assert count(task, architecture, config, "meta") == count(task, architecture, config, "cpu")


@pytest.mark.parametrize(("task", "architecture"), BASES)
def test_prefixes_are_counted_on_every_architecture(task, architecture):
    config = METHODS["prefix_tuning"].config(num_virtual_tokens=2)
    found = count(task, architecture, config, "meta")
    assert found is None or found > 0
