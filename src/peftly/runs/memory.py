"""Peak memory of a training, estimated from the config of its base before any weight is read.

On a GPU the peak is that of torch's tensors (`torch.cuda.max_memory_allocated`): base, adapter, gradients, moments of
the optimizer, saved activations, logits and temporaries. On a CPU it is the peak of the resident set of the process,
which also holds Python, the libraries, mapped pages of the weights, and memory that the allocator keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftly.errors import PeftlyError
from peftly.models import (
    TASKS,
    BaseSpec,
    Head,
    Pooling,
    Quantization,
    as_quantization,
    choose_task,
    config_without_weights,
    is_encoder,
    open_skeleton,
    resolve_base,
)
from peftly.runs.simulated_training import SimulatedTraining, simulate_training
from peftly.training import TrainConfig, free_bytes
from peftly.utils import memory_of_process, resolve_device, resolve_dtype

if TYPE_CHECKING:
    from peftly.data import Data, TaskName
    from peftly.methods import MethodConfig

__all__ = ["MemoryEstimate", "default_task", "estimate_memory"]

LIBRARIES_BYTES = 80e6
"""Memory of a CPU's process that comes with the first model: tokenizer, and code pages of kernels."""

PROBE_BYTES = 110e6
"""Memory of a CPU's process that comes with the linear probe from which a new classifier starts: scikit-learn."""

SLACK = 1.5
"""Memory that glibc's allocator takes from the system for each byte that a step allocates and frees again: holes
between blocks stay. Chosen by measurements on both real bases (docs/log.md); with gradient checkpointing the holes are
larger."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimate for one method.

    Attributes:
        trained_parameters: number of trained parameters.
        total_parameters: number of parameters of the base with the adapter.
        adapter_bytes: bytes of the tensors in the adapter's file.
        base_bytes: bytes of the base in memory.
        process_bytes: on a CPU, memory of the process without the base; 0 on a GPU.
        loading_bytes: peak while the base is opened.
        training_bytes: peak of the steps.
        evaluation_bytes: peak of an evaluation.
        tokens: number of tokens of the longest example, with virtual tokens.
        device: type of the device, such as `cpu`.
    """

    trained_parameters: int
    total_parameters: int
    adapter_bytes: int
    base_bytes: int
    process_bytes: int
    loading_bytes: int
    training_bytes: int
    evaluation_bytes: int
    tokens: int
    device: str

    @property
    def steps_bytes(self) -> int:
        """Peak of the steps and of the evaluations between them."""
        return max(self.training_bytes, self.evaluation_bytes)

    @property
    def peak_bytes(self) -> int:
        """Peak of the whole run."""
        return max(self.loading_bytes, self.steps_bytes)


def estimate_memory(
    base: str | BaseSpec,
    method: MethodConfig | Mapping[str, MethodConfig],
    config: TrainConfig | None = None,
    *,
    data: Data | int = 512,
    task: TaskName | None = None,
    labels: Sequence[str] = (),
    pooling: Pooling | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantization: Quantization | str | None = None,
    process_bytes: int | None = None,
    available_bytes: int | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of training an adapter on a base. No weights are needed, the config of the base is.

    The training code itself takes two steps and an evaluation on tensors without data, whose bytes are counted.

    Args:
        base: base as `load_base` takes it; a folder may hold `config.json` only.
        method: settings of the adapter, or of adapters that work together, by name.
        config: training settings; None: the defaults.
        data: encoded data, of which the longest examples count; or the number of tokens of every example, which are
            all trained and are a whole batch in an evaluation.
        task, labels, pooling, dtype, device, quantization: as `load_base` takes them. Without a task the one that fits
            the base is taken, and a classifier without labels has two. The device may be a GPU that this machine
            lacks: then the estimate is the least memory with which the training runs.
        process_bytes: on a CPU, memory of the process without the base; None: its memory now.
        available_bytes: memory of the device that is free before the base is opened, which decides how many examples
            a training computes at once; None: the memory that is free now.

    Raises:
        BaseModelError: the base or its config cannot be found or read.
        MethodError: the method does not fit the base.
        ConfigError: the settings do not fit base or data.
    """
    is_planned = _is_missing_gpu(device)
    resolved_device = torch.device("cuda") if is_planned else resolve_device(device)
    config = config or TrainConfig()
    if is_planned:
        dtype = "bfloat16" if dtype == "auto" else dtype
    if is_planned and available_bytes is None:  # one example at once
        available_bytes, config = 0, config.model_copy(update={"micro_batch_tokens": 1})
    if process_bytes is None:
        process_bytes = memory_of_process()
    weights_dtype, quantized = resolve_dtype(dtype, resolved_device), as_quantization(quantization)
    spec = resolve_base(base)
    base_config = config_without_weights(spec)
    task = task or default_task(spec, base_config)
    if TASKS[task].is_classification and not labels:
        labels = ("0", "1")
    head = Head(task, tuple(labels), pooling=pooling)
    model = open_skeleton(spec, dtype=weights_dtype, head=head, quantization=quantized)
    methods = dict(method) if isinstance(method, Mapping) else {"default": method}
    found = simulate_training(
        model,
        methods,
        config,
        data,
        _tokenizer(spec),
        resolved_device,
        free_bytes(resolved_device) if available_bytes is None else available_bytes,
    )
    stored = _stored_bytes(spec, base_config, found.base_parameters)
    is_mapped = quantized is None and spec.kind != "gguf" and _stored_dtype(base_config) == weights_dtype
    return _estimate(
        found,
        resolved_device,
        process_bytes,
        stored_bytes=0 if is_mapped else stored,
        has_probe=TASKS[task].is_classification,
    )


def _is_missing_gpu(device: str | torch.device | None) -> bool:
    """Return whether a device is a CUDA GPU on a machine without one, for which a training can still be planned."""
    return re.fullmatch(r"cuda(:\d+)?", str(device)) is not None and not torch.cuda.is_available()


def _estimate(
    found: SimulatedTraining, device: torch.device, process: int, *, stored_bytes: int, has_probe: bool
) -> MemoryEstimate:
    """Return the estimate for a device from the bytes of tensors.

    Args:
        found: bytes of tensors.
        device: device of the training.
        process: memory of the process without the base, on a CPU.
        stored_bytes: bytes of the files that are read while the base is opened.
        has_probe: whether a linear probe is fitted before the training.
    """
    is_cpu = device.type == "cpu"
    slack = SLACK if is_cpu else 1.0
    fixed = process + int(LIBRARIES_BYTES + (PROBE_BYTES if has_probe else 0)) if is_cpu else 0

    def peak(tensors: int) -> int:
        kept = min(found.kept, tensors)
        return fixed + kept + int(slack * (tensors - kept))

    return MemoryEstimate(
        trained_parameters=found.parameters,
        total_parameters=found.total_parameters,
        adapter_bytes=found.adapter,
        base_bytes=found.base,
        process_bytes=process if is_cpu else 0,
        loading_bytes=fixed + found.base + (stored_bytes if is_cpu else 0),
        training_bytes=peak(found.training),
        evaluation_bytes=peak(found.evaluation),
        tokens=found.tokens,
        device=device.type,
    )


def default_task(base: BaseSpec, config: Any) -> TaskName:
    """Return the task of a base for data that are not known: labels for an encoder, texts for another base."""
    return choose_task(None, config, "labels" if is_encoder(config) else "texts", base.name)[0]


def _tokenizer(base: BaseSpec) -> Any:
    """Return the tokenizer of a base; None if its files are not here."""
    try:
        tokenizer = base.tokenizer
    except PeftlyError:
        return None
    # Without its files transformers makes some tokenizers that know special tokens only.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _stored_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _stored_bytes(base: BaseSpec, config: Any, parameters: int) -> int:
    """Return the bytes of the weights in the files of a base."""
    return Path(base.source).stat().st_size if base.kind == "gguf" else parameters * _stored_dtype(config).itemsize
