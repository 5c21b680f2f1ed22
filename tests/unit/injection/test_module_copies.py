"""Normalisation layers and layers with a bias, as methods that copy them find them."""

import pytest
import torch
from tiny import tiny_model
from torch import nn

from peftly.injection.module_copies import bias_layers, norm_layers

NUM_NORMS = {"llama": 5, "gpt2": 5, "bert": 5, "t5": 12, "bloom": 6, "gemma3": 13}
"""Normalisation layers of tiny models with two blocks (T5: two in the encoder and two in the decoder)."""


@pytest.mark.parametrize("architecture", NUM_NORMS)
def test_norms_are_the_classes_that_transformers_calls_norms(architecture):
    task = {"bert": "sequence_classification", "t5": "seq2seq_lm"}.get(architecture, "causal_lm")
    model = tiny_model(architecture, task=task)
    by_class_name = {path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    assert set(norm_layers(model)) == by_class_name
    assert len(by_class_name) == NUM_NORMS[architecture]


class Scale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape[-1]))


class NormedEmbedding(nn.Embedding):
    pass


def test_names_and_vectors_decide_for_other_classes():
    names = ("q_norm", "input_layernorm", "LayerNorm", "layer_norm", "norm1", "norm_f", "ln_1", "ln_f", "ffn_norm")
    others = ("normal", "abnorm", "lnear", "head", "norm_matrix")
    layers = {name: Scale(4) for name in (*names, *others)}
    layers["norm_matrix"] = Scale(3, 4)
    layers |= {"embed": NormedEmbedding(5, 4), "batch": nn.BatchNorm1d(4), "linear": nn.Linear(4, 4)}
    layers |= {"no_parameters": nn.LayerNorm(4, elementwise_affine=False), "layernorm": nn.ModuleList([Scale(4)])}
    model = nn.ModuleDict(layers)
    assert set(norm_layers(model)) == {*names, "batch", "layernorm.0"}
    assert set(bias_layers(model)) == {*names, "batch", "layernorm.0", "linear"}
