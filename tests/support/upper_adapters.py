"""Adapters in the upper layers of a model."""

import torch
from tiny import tiny_model
from transformers.pytorch_utils import Conv1D

from peftly import LoRA, attach, trainable_parameters
from peftly.training.frozen_layers import frozen_layers

UPPER = {
    "llama": r".*layers\.1\..*(q_proj|down_proj)",
    "gemma3": r".*layers\.1\..*(q_proj|down_proj)",
    "gpt2": r".*h\.1\..*(c_attn|c_proj)",
    "opt": r".*layers\.1\..*(q_proj|fc1)",
    "bloom": r".*h\.1\..*(query_key_value|dense_h_to_4h)",
}


def upper_lora(architecture: str, **settings):
    model = tiny_model(architecture, torch.float64)
    attach(model, LoRA(rank=2, target_modules=UPPER[architecture], **settings), seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable_parameters(model).values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def calls_below(model) -> list[int]:
    """Return a list that will have the number of tokens of every training call of the lowest block."""
    calls, block = [], frozen_layers(model)[0]
    part = next(module for module in block.modules() if isinstance(module, torch.nn.Linear | Conv1D))
    part.register_forward_hook(
        lambda _, args, __: calls.append(args[0].shape[:-1].numel()) if torch.is_grad_enabled() else None
    )
    return calls
