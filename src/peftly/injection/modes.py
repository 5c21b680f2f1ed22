"""Training mode and evaluation mode of a model with adapters, and checkpointing of its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.caching import cache_adapter_tensors
from peftly.injection.selection import bind_context

__all__ = ["checkpointed_blocks", "evaluation_mode", "training_mode"]

_CHECKPOINTING_ATTRIBUTES = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
"""Attributes of a block that `checkpointed_blocks` sets."""


@contextmanager
def training_mode(model: nn.Module, *, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Put the trained modules in training mode, and only these, while the block runs.

    The dropout of the base stays off. Its rate was chosen for training the whole base, and for a small adapter it only
    adds noise to the gradient (soft prompts in particular learn worse with it). A module is put in training mode, with
    all its submodules, if one of its own parameters is trained or if all parameters inside it are trained.

    Args:
        model: a transformers model, not wrapped by another module.
        gradient_checkpointing: whether to enter `checkpointed_blocks` too.

    Raises:
        MethodError: gradient checkpointing is asked for, and the model has no blocks that support it.
    """
    modes = _modes_of(model)
    model.eval()
    for module in model.modules():
        trains_itself = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trains_itself or (trained and all(trained)):
            module.train()
    try:
        with checkpointed_blocks(model) if gradient_checkpointing else nullcontext():
            yield
    finally:
        _restore_modes(modes)


@contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[None]:
    """Save only the input of each transformer block for the backward pass, which computes the block again.

    Args:
        model: a transformers model in `training_mode`.

    Raises:
        MethodError: the model has no blocks that support gradient checkpointing.
    """
    blocks = _checkpointable(model)
    before = [
        {name: vars(block)[name] for name in _CHECKPOINTING_ATTRIBUTES if name in vars(block)} for block in blocks
    ]
    try:
        for block in blocks:
            # transformers checkpoints a block only in training mode, but the dropout of the block must stay off. So the
            # mode is reset inside the checkpoint, in the forward pass and when the backward pass runs the block again.
            block._gradient_checkpointing_func = partial(_checkpoint, block, block.training)
            block.gradient_checkpointing = block.training = True
        yield
    finally:
        for block, attributes in zip(blocks, before, strict=True):
            # An attribute that only the class had before must not stay on the instance.
            for name in _CHECKPOINTING_ATTRIBUTES:
                vars(block).pop(name, None)
            vars(block).update(attributes)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without gradients, while the block runs.

    Tensors derived from the weights of adapters are cached inside the block, so no weight may change there. Blocks of
    several threads may overlap: the last one that ends restores the modes from before the first.
    """
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            blocks, mode = _EVALUATED.get(module, (0, module.training))
            _EVALUATED[module] = (blocks + 1, mode)
        model.eval()
    try:
        # Not torch.inference_mode: a later training step may use tensors that hooks store during the call.
        with torch.no_grad(), cache_adapter_tensors():
            yield
    finally:
        with _LOCK:
            for module in modules:
                blocks, mode = _EVALUATED.pop(module)
                if blocks > 1:
                    _EVALUATED[module] = (blocks - 1, mode)
                else:
                    module.training = mode


_LOCK = Lock()
_EVALUATED: dict[nn.Module, tuple[int, bool]] = {}
"""Modules in `evaluation_mode`: the number of open blocks, and whether the module was in training mode before."""


def _modes_of(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _checkpointable(model: nn.Module) -> list[Any]:
    blocks = blocks_of(model)
    if not blocks:
        raise MethodError(
            f"{type(model).__name__} has no blocks that can be checkpointed; set train.gradient_checkpointing to false"
        )
    return blocks


def _checkpoint(block: nn.Module, training: bool, function: Callable[..., Any], *args: Any) -> Any:
    """Run a block through a checkpoint, with its mode set to `training` in both passes."""

    def run_block(*inputs: Any) -> Any:
        outer_mode, block.training = block.training, training
        try:
            return function(*inputs)
        finally:
            block.training = outer_mode

    return checkpoint(bind_context(run_block), *args, use_reentrant=False)
