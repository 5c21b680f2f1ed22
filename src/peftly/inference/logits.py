"""Logits of a model at the positions that have a target, and nowhere else."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from peftly.errors import AdapterError, MethodError
from peftly.injection import use_adapters_of_elements

__all__ = [
    "IGNORED",
    "Logits",
    "check_finite",
    "class_logits",
    "decoder_logits",
    "labelled_logits",
    "logits_at",
    "model_inputs",
    "outputs_at",
    "tag_logits",
    "text_positions",
]

IGNORED = -100
"""Label of a token that is not trained, as in transformers."""

Logits = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""Function from a model and a batch to the logits of every target, (count, choices), and the targets, (count,).

The batch has the tensors of `collate`, or those of `collate_packed`, with which the model is called in `packed_call`.
"""


def check_finite(*values: Tensor) -> None:
    """Check the outputs of a model, since a prediction from NaN is always the first label.

    Raises:
        AdapterError: a value is not finite.
    """
    if not all(bool(part.isfinite().all()) for part in values):
        raise AdapterError(
            "the model computes values that are not numbers (NaN); its weights are damaged, or its dtype is too small: "
            "try dtype float32"
        )


def labelled_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits that predict the labelled tokens, (count, vocabulary), and those tokens, (count,).

    Args:
        model: language model, wrapped for data parallelism or not.
        batch: see `Logits`.
    """
    if "targets" in batch:
        inputs = {"input_ids": batch["input_ids"]}
        return logits_at(model, batch["target_indices"], inputs, use_cache=False)[0], batch["targets"]
    next_labels = torch.full_like(batch["labels"], IGNORED)
    next_labels[:, :-1] = batch["labels"][:, 1:]
    indices = _labelled(next_labels)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs["position_ids"] = text_positions(batch["attention_mask"])
    logits, _ = logits_at(model, indices, inputs, use_cache=False)
    return logits, next_labels.flatten()[indices]


def class_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of a sequence classifier for the labelled examples, (count, classes), and their classes.

    Args:
        model: sequence classifier, wrapped for data parallelism or not.
        batch: tensors of `collate`; the head reads a batch, not a packed sequence.
    """
    labels = batch["labels"][:, 0]
    indices = _labelled(labels)
    return model(**model_inputs(model, batch)).logits[indices], labels[indices]


def tag_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of a token classifier at the tagged tokens, (count, tags), and their tags, (count,).

    Args:
        model: token classifier, wrapped for data parallelism or not.
        batch: see `Logits`.
    """
    logits = model(**model_inputs(model, batch)).logits.flatten(0, 1)
    if "targets" in batch:
        return F.embedding(batch["target_indices"].to(logits.device), logits), batch["targets"]
    indices = _labelled(batch["labels"])
    return logits[indices], batch["labels"].flatten()[indices]


def decoder_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of an encoder-decoder for the tokens of the answers, (count, vocabulary), and those tokens.

    The decoder reads the answers shifted by one token, as the model itself shifts labels.

    Args:
        model: encoder-decoder, wrapped for data parallelism or not.
        batch: tensors of `collate`.
    """
    labels = batch["labels"]
    indices = _labelled(labels)
    inputs = model_inputs(model, batch)
    inputs["decoder_input_ids"] = cast(Any, _unwrapped(model)).prepare_decoder_input_ids_from_labels(labels)
    logits, _ = logits_at(model, indices, inputs, use_cache=False)
    return logits, labels.flatten()[indices]


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a batch that a model takes: no positions, and token types only for a model with them."""
    parameters = inspect.signature(_unwrapped(model).forward).parameters
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if "token_type_ids" in batch and "token_type_ids" in parameters:
        inputs["token_type_ids"] = batch["token_type_ids"]
    return inputs


def logits_at(model: nn.Module, indices: Tensor, inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Any]:
    """Run a language model, with its output head at some positions only.

    Args:
        model: language model, wrapped for data parallelism or not.
        indices: indices into the flattened (batch, length) of the input, (count,).
        inputs: inputs of the model; `position_ids` is left out for a model that takes none.
        options: other arguments of the model's call.

    Returns:
        Logits at `indices`, (count, vocabulary), and the whole output of the model.
    """
    unwrapped = _unwrapped(model)
    parameters = inspect.signature(unwrapped.forward).parameters
    accepted = {name: value for name, value in inputs.items() if name != "position_ids" or name in parameters}
    with outputs_at(unwrapped, indices):
        output = model(**accepted, **options)
    return output.logits.flatten(0, 1), output


@contextmanager
def outputs_at(model: nn.Module, indices: Tensor) -> Iterator[None]:
    """Apply the output head of a model to some positions of its input only.

    The input of the head changes from (batch, length, width) to (count, 1, width), so that logit scales and
    soft-capping of the model still apply.

    Args:
        model: language model.
        indices: indices into the flattened (batch, length), (count,).

    Raises:
        MethodError: the model has no output head.
    """
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise MethodError(f"{type(model).__name__} has no output head, so it gives no token a probability")
    adapters = ExitStack()

    def select(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        adapters.enter_context(use_adapters_of_elements(model, hidden.shape[0], indices // hidden.shape[1]))
        # F.embedding and not indexing: indices may repeat, and the backward of indexing adds in no fixed order.
        return F.embedding(indices.to(hidden.device), hidden.flatten(0, 1))[:, None], *args[1:]

    handles = [
        head.register_forward_pre_hook(select),
        head.register_forward_hook(lambda *_: adapters.close(), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def text_positions(attention_mask: Tensor) -> Tensor:
    """Return the position of every token in its own text, (batch, length), whatever the side of the padding."""
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _labelled(labels: Tensor) -> Tensor:
    """Return the indices of the labels that are not `IGNORED` in the flattened labels, (count,)."""
    return labels.flatten().ne(IGNORED).nonzero().squeeze(1)
