"""The blocks of a stack of transformer layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    pass

__all__ = []


def blocks_of(module: nn.Module) -> list[Any]:
    """Return the blocks of a stack that gradient checkpointing computes again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [block for block in module.modules() if isinstance(block, GradientCheckpointingLayer)]
