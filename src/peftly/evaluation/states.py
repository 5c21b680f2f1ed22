"""States of a frozen base that linear probes read: the inputs of the heads of classifiers and of language models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from peftly.data import EncodedExample, collate
from peftly.inference import (
    IGNORED,
    by_length,
    logits_at,
    model_inputs,
    on_device,
    pad_id,
    text_positions,
    use_batch,
)
from peftly.injection import body_of, evaluation_mode
from peftly.models import POOLINGS, classifier_layer, is_encoder, pool, pooling_of, reads_padding, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HeadName", "head_states", "label_states"]

HeadName = Literal["own", "mean", "first"]
"""States that a head reads: those in front of the last layer of the model's own head, or pooled states of the last
layer of the base."""


def head_states(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Sequence[EncodedExample],
    *,
    batch_size: int,
    pooled: bool = False,
) -> Iterator[tuple[dict[HeadName, Tensor], list[int]]]:
    """Yield the states of the targets of each batch: of each text, or of each tagged word.

    Args:
        model: classifier with a `classifier_layer`; the states are those of its base if no adapter is active.
        tokenizer: tokenizer of the model.
        encoded: encoded examples with labels or tags.
        batch_size: number of examples per forward pass.
        pooled: whether the pooled states of an encoder that classifies texts are wanted, besides those of its own head.

    Returns:
        For each batch the states by the name of the head, (targets, width), in fp64 on the CPU, and the classes of the
        targets.
    """
    found = classifier_layer(model)
    assert found is not None
    is_plain = task_of(model) == "sequence_classification" and pooling_of(model) is None
    has_poolings = pooled and is_plain and is_encoder(model.config)
    with evaluation_mode(model), _recorded(found[1]) as inputs, _recorded(body_of(model)) as outputs:
        lengths = [len(example.input_ids) for example in encoded]
        for chosen in by_length(lengths, batch_size, equal_lengths=reads_padding(model)):
            examples = [encoded[index] for index in chosen]
            batch = on_device(collate(examples, pad_id=pad_id(tokenizer)), model)
            inputs.clear()
            outputs.clear()
            with use_batch(model, examples, None):
                model(**model_inputs(model, batch))
            states: dict[HeadName, Tensor] = {"own": _of_targets(model, inputs["input"], batch)}
            for pooling in POOLINGS if has_poolings else ():
                states[pooling] = pool(outputs["output"], batch["attention_mask"], pooling)
            labels = batch["labels"][batch["labels"] != IGNORED]
            yield {name: value.double().cpu() for name, value in states.items()}, labels.tolist()


def label_states(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Sequence[EncodedExample],
    *,
    batch_size: int,
) -> Tensor:
    """Return the states from which a language model predicts the first token of each label, (count, width).

    Args:
        model: language model; the states are those of its base if no adapter is active.
        tokenizer: tokenizer of the model.
        encoded: encoded examples with labels, at least one.
        batch_size: number of examples per forward pass.

    Returns:
        The states, in fp64 on the CPU.
    """
    parts, order = [], []
    with evaluation_mode(model), _recorded(model.get_output_embeddings()) as record:
        lengths = [len(example.input_ids) for example in encoded]
        for chosen in by_length(lengths, batch_size, equal_lengths=reads_padding(model)):
            examples = [encoded[index] for index in chosen]
            batch = on_device(collate(examples, pad_id=pad_id(tokenizer)), model)
            labels = batch["labels"]
            columns = (labels != IGNORED).int().argmax(1)  # of the first token of each label
            if model.config.is_encoder_decoder:  # the decoder reads the label shifted by one token
                shifted = {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
                inputs = model_inputs(model, batch) | shifted
            else:
                columns = (columns - 1).clamp_min(0)
                inputs = model_inputs(model, batch) | {"position_ids": text_positions(batch["attention_mask"])}
            rows = torch.arange(len(chosen), device=labels.device)
            with use_batch(model, examples, None):
                logits_at(model, rows * labels.shape[1] + columns, inputs, use_cache=False)
            parts.append(record["input"].squeeze(1).double().cpu())
            order += chosen
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _of_targets(model: Any, states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the states of the texts or of the tagged words in the input of a classifier layer."""
    if task_of(model) == "token_classification":
        return states[(batch["labels"] != IGNORED).to(states.device)]
    if states.ndim == 2:
        return states
    # A decoder classifies every token, and the last one counts that is not padding, as its class finds it by the id.
    is_text = batch["input_ids"] != model.config.get_text_config().pad_token_id
    columns = torch.arange(is_text.shape[1], device=is_text.device)
    last = (columns * is_text).argmax(1)
    return states[torch.arange(len(states), device=states.device), last.to(states.device)]


@contextmanager
def _recorded(module: Any) -> Iterator[dict[str, Tensor]]:
    """Record the first input and the first output of a module in its calls inside the block."""
    record: dict[str, Tensor] = {}

    def note(_module: Any, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor):
            record["input"] = args[0].detach()
        record["output"] = (output if isinstance(output, Tensor) else output[0]).detach()

    handle = module.register_forward_hook(note)
    try:
        yield record
    finally:
        handle.remove()
