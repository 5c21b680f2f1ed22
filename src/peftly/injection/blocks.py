"""The blocks of a stack of transformer layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from peftly.injection.layers import base_modules

__all__ = ["blocks_of"]


def blocks_of(stack: nn.Module) -> list[Any]:
    """Return the blocks of a stack that support gradient checkpointing."""
    return [block for _, block in base_modules(stack) if isinstance(block, GradientCheckpointingLayer)]
