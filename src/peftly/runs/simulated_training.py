"""Two steps of a training and an evaluation on a base without weights, to count the bytes of their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from peftly.adapters import (
    adapter_tensors,
    attach_without_values,
    attached,
    num_virtual_tokens_of,
    trainable_parameters,
)
from peftly.data import Data, EncodedExample, Example, RowFormat, Split, token_counts
from peftly.models import max_tokens, task_of
from peftly.training import Callback, StepRecord, TrainConfig, fast_tokens, memory_of_device, stored_bytes, train
from peftly.utils import SimulatedMemory, same_random_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftly.methods import MethodConfig

__all__ = ["SimulatedTraining", "simulate_training"]

_NO_TOKENIZER: Any = SimpleNamespace(pad_token_id=0)

_STEPS = 2
"""Steps that are simulated: the optimizer has its moments from the second one on."""


@dataclass(frozen=True)
class SimulatedTraining:
    """Bytes of the tensors of a training.

    Attributes:
        parameters: number of trained parameters.
        base_parameters: number of parameters of the base.
        total_parameters: number of parameters of the model with its adapters.
        adapter: bytes of the tensors in the files of the adapters.
        base: bytes of the base.
        kept: bytes that live between two steps, the base included.
        training: largest number of bytes in a step.
        evaluation: largest number of bytes afterwards, in an evaluation.
        tokens: number of tokens of the longest example.
    """

    parameters: int
    base_parameters: int
    total_parameters: int
    adapter: int
    base: int
    kept: int
    training: int
    evaluation: int
    tokens: int


def simulate_training(
    model: PreTrainedModel,
    methods: dict[str, MethodConfig],
    config: TrainConfig,
    data: Data | int,
    tokenizer: Any,
    device: torch.device,
    free: int,
) -> SimulatedTraining:
    """Attach new adapters to a model without weights, train them without data, and count.

    Args:
        model: result of `open_skeleton`; it has the adapters afterwards.
        methods: settings of the adapters by their names.
        config: training settings.
        data: data of the run, of which the longest examples count; or the length of all examples, of which every token
            is trained.
        tokenizer: tokenizer of the base; None: its files are not here.
        device: device that the training would use.
        free: bytes of memory that are free on the device, before the base is loaded.

    Raises:
        PeftlyError: the model cannot carry the adapters, or not be trained like this.
    """
    memory = SimulatedMemory([*model.parameters(), *model.buffers(), *_quantization_tensors(model)])
    base, base_parameters = memory.live, _count(model)
    with memory, same_random_states():
        for name, method in methods.items():
            attach_without_values(model, method, name=name, tokenizer=tokenizer)
        if isinstance(data, int):
            length = min(data, max_tokens(model) or data)
            data = _longest_case(model, length, _num_examples(config, length, device), config.evaluation_batch_size)
        else:
            all_examples, data = data.train.encoded, _longest(data, config, device)
            if _settings(config, data).frozen_layers_once:
                others = stored_bytes(model, all_examples) - stored_bytes(model, data.train.encoded)
                states = torch.empty(max(0, others), dtype=torch.uint8, device="meta")
                memory.count(states)
        longest = max(token_counts(data.train.encoded))
        steps = _Peaks(memory)
        with memory_of_device(device, lambda: max(0, free - memory.live)):
            train(model, data, _settings(config, data), tokenizer=tokenizer or _NO_TOKENIZER, callbacks=[steps])
    trained = trainable_parameters(model)
    return SimulatedTraining(
        parameters=sum(parameter.numel() for parameter in trained.values()),
        base_parameters=base_parameters,
        total_parameters=_count(model),
        adapter=sum(
            tensor.nbytes for adapter in attached(model).values() for tensor in adapter_tensors(adapter).values()
        ),
        base=base,
        kept=steps.kept,
        training=steps.training,
        evaluation=memory.peak,
        tokens=longest + num_virtual_tokens_of(model),
    )


class _Peaks(Callback):
    """Peak of the steps of a simulated training; afterwards that of the evaluation is counted.

    Attributes:
        training: largest number of bytes until the last step.
        kept: bytes that live after a step.
    """

    def __init__(self, memory: SimulatedMemory) -> None:
        self._memory, self.training, self.kept = memory, 0, 0

    def on_step(self, record: StepRecord) -> None:
        """Take the peak so far, and begin anew."""
        self.training = max(self.training, self._memory.peak)
        self._memory.peak = self.kept = self._memory.live


def _settings(config: TrainConfig, data: Data) -> TrainConfig:
    """Return the settings of the simulated steps, in which all examples are one batch."""
    comes_again = config.epochs != 1
    changes = {
        "max_steps": _STEPS,
        "epochs": None,
        "eval_steps": None if data.validation is None else _STEPS,
        "save_steps": None,
        "batch_size": len(data.train.encoded),
        "gradient_accumulation_steps": 1,
        "warmup_steps": None,
        "frozen_layers_once": config.frozen_layers_once and comes_again,
        "metric_for_best_model": "loss",
        "early_stopping_patience": None,
        "fsdp": False,
        "report_to": (),
    }
    return config.model_copy(update=changes)


def _num_examples(config: TrainConfig, length: int, device: torch.device) -> int:
    """Return how many examples of a step are simulated: all, or two micro-batches."""
    at_once = max(1, (config.micro_batch_tokens or fast_tokens(device)) // length)
    return min(config.batch_size * config.gradient_accumulation_steps, 2 * at_once)


def _longest(data: Data, config: TrainConfig, device: torch.device) -> Data:
    """Return the longest examples of each split, as many as are in the memory at once."""
    counts = token_counts(data.train.encoded)
    train_split = _chosen(data.train, _num_examples(config, max(counts, default=1), device))
    held_out = data.validation if data.validation is not None else data.test
    validation = None if held_out is None else _chosen(held_out, config.evaluation_batch_size)
    return Data(train_split, validation, None, data.row_format, data.report)


def _chosen(split: Split, count: int) -> Split:
    counts = token_counts(split.encoded)
    indices = sorted(range(len(counts)), key=lambda index: -counts[index])[:count]
    encoded = [replace(split.encoded[index]) for index in indices]  # without their places in the split
    return Split([split.examples[index] for index in indices], encoded)


def _longest_case(model: Any, length: int, *counts: int) -> Data:
    """Return examples of equal length for the task of a model, with as many targets as it has tokens."""
    task = task_of(model) or "causal_lm"
    labels = tuple(map(str, range(model.config.num_labels)))
    formats = {
        "causal_lm": RowFormat("text", None, "text"),
        "seq2seq_lm": RowFormat("completion", "{text}", "answer"),
        "sequence_classification": RowFormat("label", "{text}", "label", labels=labels),
        "token_classification": RowFormat("tags", "{text}", "tags", labels=labels),
    }
    splits = []
    for count in counts:
        encoded = [_example(task, model.config, length, number) for number in range(count)]
        text = Example("text", " text", label=labels[0], words=("word",) * length, tags=labels[:1] * length)
        splits.append(Split([text] * count, encoded))
    return Data(splits[0], splits[1], None, formats[task], None)  # type: ignore[arg-type]


def _example(task: str, config: Any, length: int, number: int) -> EncodedExample:
    vocabulary = config.get_text_config().vocab_size
    ids = [1 + (number + index) % (vocabulary - 1) for index in range(length)]  # no common prefix
    is_trained = [task in ("causal_lm", "token_classification")] * length
    return EncodedExample(
        ids,
        is_trained,
        label=0 if task == "sequence_classification" else None,
        tags=[0] * length if task == "token_classification" else None,
        answer=ids if task == "seq2seq_lm" else None,
    )


def _count(model: PreTrainedModel) -> int:
    """Return the number of parameters of a model; a byte of a 4-bit weight holds two."""
    states = [(parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters()]
    return sum(parameter.numel() if state is None else math.prod(state.shape) for parameter, state in states)


def _quantization_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Yield the scales of quantised weights, which are no parameters."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        scales = [getattr(parameter, "SCB", None)]
        while state is not None:
            scales += [state.absmax, state.code]
            state = state.state2
        yield from (tensor for tensor in scales if tensor is not None)
