"""The number of trainable parameters and of all parameters of a model."""

import pytest
from quantized import quantized
from tiny import tiny_model

from peftly import LoRA, PromptTuning, attach
from peftly.adapters import parameter_counts


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(num_virtual_tokens=3, init="random")])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", None])
def test_quantised_weights_and_tied_embeddings_count_once(method, kind):
    plain = tiny_model("llama", tie_word_embeddings=True)
    whole = sum(parameter.numel() for parameter in plain.parameters())
    model = plain if kind is None else quantized("llama", kind, tie_word_embeddings=True)
    attach(model, method, seed=1)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable > 0
    assert parameter_counts(model) == (trainable, whole + trainable)
