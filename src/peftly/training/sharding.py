"""A frozen base whose parameters are sharded over the processes of a run, with `fully_shard` (FSDP2) of torch.

Each process holds a part of every parameter of the base. The parameters of a block are gathered for the forward and the
backward pass of that block and freed again. The trained parameters are few: each process holds all of them, and their
gradients are summed after the last micro-batch of a step.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from peftly.adapters import attached
from peftly.errors import ConfigError
from peftly.injection import blocks_of
from peftly.models import remember_whole
from peftly.training.processes import num_processes, on_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_shardable", "computed_with", "is_sharded", "shard_base", "sum_gradients"]

Result = TypeVar("Result")


def check_shardable(model: "PreTrainedModel") -> None:
    """Refuse a model whose frozen parameters cannot be sharded.

    Raises:
        ConfigError: the base is quantised, has a device map, or has no blocks, or nothing is frozen.
    """
    reason = None
    if getattr(model, "hf_quantizer", None) is not None:
        reason = "the base is quantised; load it in bfloat16"
    elif getattr(model, "hf_device_map", None) is not None:
        reason = "the base has a device map; remove device_map"
    elif not blocks_of(model):
        reason = f"a {type(model).__name__} has no blocks to shard one by one"
    elif all(parameter.requires_grad for parameter in model.parameters()):
        reason = "no parameter of the base is frozen; choose another method"
    if reason:
        raise ConfigError(f"train.fsdp shards frozen parameters over processes, and {reason}, or set train.fsdp: false")


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard_base` has sharded the base of a model; every process must call such a model together."""
    return isinstance(model, FSDPModule)


def shard_base(model: "PreTrainedModel", device: torch.device) -> None:
    """Shard the frozen parameters of a model over all processes, in place, unless they are sharded.

    Args:
        model: adapted model, whole on every process.
        device: device of this process. The blocks of a model that is in the CPU's memory move there one by one.

    Raises:
        ConfigError: see `check_shardable`.
    """
    if is_sharded(model):
        return
    check_shardable(model)
    remember_whole(model, attached(model))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (num_processes(),))
    for module in (*reversed(blocks_of(model)), model):
        fully_shard(module, mesh=mesh, ignored_params=trained)
    for parameter in model.parameters():
        if parameter.requires_grad:  # in the order of the model, which is the same on every process
            dist.broadcast(parameter.data, src=0)


def computed_with(model: nn.Module, function: Callable[[], Result]) -> Result:
    """Return the result of a function that calls a model, the same on every process.

    The main process calls the function while the others wait. If the base is sharded, all processes call it, and the
    result of the main process counts.

    Args:
        model: model that the function calls.
        function: function without arguments. Its result can be pickled.
    """
    if not is_sharded(model):
        return on_main_process(function)
    result = function()
    return on_main_process(lambda: result)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their sums over all processes, in place."""
    works: list[Any] = [
        dist.all_reduce(parameter.grad, async_op=True) for parameter in parameters if parameter.grad is not None
    ]
    for work in works:
        work.wait()
