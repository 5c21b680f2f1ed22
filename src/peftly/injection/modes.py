"""Which parts of a model behave as in training, while it trains and while it is evaluated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.layers import fixed_weights
from peftly.injection.selection import keep_context

__all__ = ["checkpointed_blocks", "evaluation_mode", "training_mode"]

_CHANGED = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
"""What checkpointing changes on a block."""


@contextmanager
def training_mode(model: nn.Module, *, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Put what is trained in training mode, and only that; afterwards every module is as before.

    The base's own dropout stays off: it was chosen for training all of the base, and on a small adapter it is noise in
    the gradient (a soft prompt in particular learns worse with it). What is trained is a module that owns a trained
    parameter, with all below it, and any part of the model whose parameters are all trained.

    Args:
        model: a transformers model, not wrapped.
        gradient_checkpointing: see `checkpointed_blocks`.

    Raises:
        MethodError: gradient checkpointing is asked for and the model has no blocks that can do it.
    """
    flags = _flags(model)
    model.eval()
    for module in model.modules():
        own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        below = [parameter.requires_grad for parameter in module.parameters()]
        if own or (below and all(below)):
            module.train()
    try:
        with checkpointed_blocks(model) if gradient_checkpointing else nullcontext():
            yield
    finally:
        _put_back(flags)


@contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[None]:
    """Keep only the input of every block, and compute the block again in the backward pass.

    Args:
        model: a transformers model in `training_mode`.

    Raises:
        MethodError: the model has no blocks that can do it.
    """
    blocks = _checkpointable(model)
    before = [{name: vars(block)[name] for name in _CHANGED if name in vars(block)} for block in blocks]
    try:
        for block in blocks:
            # A block saves memory only in training mode, and its own dropout must stay off: the mode is taken back
            # inside the checkpoint, in the forward pass and again when the backward pass runs the block once more.
            block._gradient_checkpointing_func = partial(_checkpoint, block, block.training)
            block.gradient_checkpointing = block.training = True
        yield
    finally:
        for block, attributes in zip(blocks, before, strict=True):
            # Some stood on the instance before and some only on its class.
            for name in _CHANGED:
                vars(block).pop(name, None)
            vars(block).update(attributes)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients; afterwards every module is in the mode it was in.

    No weight may change in the meantime.
    """
    flags = _flags(model)
    model.eval()
    try:
        # Not inference mode: what a hook stores during the call may be used by a later training step.
        with torch.no_grad(), fixed_weights():
            yield
    finally:
        _put_back(flags)


def _flags(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _put_back(flags: list[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        module.training = training


def _checkpointable(model: nn.Module) -> list[Any]:
    blocks = blocks_of(model)
    if not blocks:
        raise MethodError(
            f"{type(model).__name__} has no blocks that can be checkpointed; set train.gradient_checkpointing to false"
        )
    return blocks


def _checkpoint(block: nn.Module, training: bool, function: Callable[..., Any], *args: Any) -> Any:
    def run(*inner: Any) -> Any:
        outer, block.training = block.training, training
        try:
            return function(*inner)
        finally:
            block.training = outer

    return checkpoint(keep_context(run), *args, use_reentrant=False)
