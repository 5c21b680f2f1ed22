"""Estimates of peak memory for the settings of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from peftly.errors import MethodError, PeftlyError
from peftly.methods import METHODS
from peftly.models import BaseSpec, Pooling, config_without_weights, resolve_base, trained_pooling
from peftly.runs.config import RunConfig
from peftly.runs.memory import MemoryEstimate, default_task, estimate_memory
from peftly.training import free_bytes, num_processes
from peftly.utils import bytes_text, memory_of_process, resolve_device

if TYPE_CHECKING:
    from peftly.data import Data, TaskName
    from peftly.methods import MethodConfig

__all__ = ["estimate_before_training", "estimate_methods", "estimate_run"]


def estimate_methods(config: RunConfig, process_bytes: int) -> Iterator[tuple[str, MemoryEstimate | str]]:
    """Yield the estimate of every method with the settings of a run, or the reason why there is none.

    The method of the configuration has its settings there, others have their defaults. The data are not read: every
    example has `data.max_length` tokens, and every token is trained.

    Args:
        config: settings of the run.
        process_bytes: memory of the process without the base.
    """
    spec = resolve_base(config.base)
    config = config.model_copy(update={"head": _expected_head(config, spec)})
    for name, method in METHODS.items():
        settings = next((own for own in config.adapters.values() if own.name == name), None) or method.config(name=name)
        try:
            yield (
                name,
                estimate_run(config, spec, {name: settings}, config.data.max_length, process_bytes=process_bytes),
            )
        except MethodError as error:
            yield name, str(error)
        except PeftlyError:
            raise
        except Exception as error:  # noqa: BLE001 - what torch cannot do without data may be any error
            yield name, _no_estimate(error)


def estimate_run(
    config: RunConfig,
    base: BaseSpec,
    methods: Mapping[str, MethodConfig],
    data: Data | int,
    *,
    task: TaskName | None = None,
    labels: Sequence[str] = (),
    process_bytes: int | None = None,
    available_bytes: int | None = None,
) -> MemoryEstimate:
    """Return the estimate for the settings of a run; see `estimate_memory` for the arguments and errors."""
    pooling: Pooling | None = config.head if config.head in ("mean", "first") else None
    return estimate_memory(
        base,
        methods,
        config.train,
        data=data,
        task=task or config.task,
        labels=labels,
        pooling=pooling,
        dtype=config.dtype,
        device=config.device,
        quantization=config.quantization,
        process_bytes=process_bytes,
        available_bytes=available_bytes,
    )


def estimate_before_training(
    config: RunConfig, data: Data, process_bytes: int, log: Callable[[str], None]
) -> MemoryEstimate | None:
    """Estimate the peak memory of a run whose data are encoded, and log it. A missing estimate never stops a run.

    Args:
        config: settings of the run, with its task and head.
        data: data of the run.
        process_bytes: memory of the process before the base was opened.
        log: function that receives the lines.

    Returns:
        The estimate; None where there is none: several processes, a base on several devices, or operations that torch
        cannot simulate.
    """
    if config.device_map is not None or num_processes() > 1:
        return None
    available = _available_without_base(resolve_device(config.device), process_bytes)
    try:
        found = estimate_run(
            config,
            resolve_base(config.base),
            config.adapters,
            data,
            labels=data.row_format.labels,
            process_bytes=process_bytes,
            available_bytes=available,
        )
    except Exception as error:  # noqa: BLE001 - what torch cannot do without data may be any error
        log(f"memory: {_no_estimate(error)}")
        return None
    free = available + found.process_bytes
    line = f"memory: about {bytes_text(found.steps_bytes)} at the peak; {bytes_text(free)} are free"
    advice = "lower train.batch_size or data.max_length, or set train.gradient_checkpointing: true or quantization: nf4"
    log(f"{line}, which is too little: {advice}" if found.steps_bytes > free else line)
    return found


def _available_without_base(device: torch.device, process_bytes: int) -> int:
    """Return the memory of a device that is free before a base is opened, which is open.

    Args:
        device: device of the base.
        process_bytes: on a CPU, memory of the process before the base was opened.
    """
    if device.type == "cpu":
        held = max(0, memory_of_process() - process_bytes)
    else:
        held = int(torch.accelerator.memory_allocated(device))
    return free_bytes(device) + held


def _no_estimate(error: Exception) -> str:
    """Return a line for an operation that torch cannot do without data."""
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"no estimate: the training cannot be simulated without weights ({reason})"


def _expected_head(config: RunConfig, base: BaseSpec) -> str:
    """Return the head that a training takes unless the probes of its data are clearly better on other states."""
    task = config.task or default_task(base, config_without_weights(base))
    if config.head != "auto" or task != "sequence_classification":
        return config.head
    return trained_pooling(base) or "transformers"
