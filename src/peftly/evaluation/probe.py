"""Linear probes: logistic regression on the states of a frozen base, with nothing trained in the base.

A probe tells how much of a task the base already knows, so it is the least that an adapter has to reach. A new head
starts from a probe (linear probing, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.adapters import attached, use_adapters
from peftly.data import EncodedExample, RowFormat, Split
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.logistic import fit
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions, label_index
from peftly.evaluation.states import HeadName, head_states, label_states
from peftly.models import classifier_layer, classifier_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Probe", "choose_probe", "evaluate_label_probe", "evaluate_probe", "fit_probes"]

MOST_EXAMPLES = 1000
"""A probe is fitted on at most this number of training examples."""

MOST_TARGETS = 5000
"""A probe is fitted on examples with at most about this number of tagged words."""


@dataclass(frozen=True)
class Probe:
    """A linear probe.

    Attributes:
        head: states that it reads.
        weight: (labels, width), in fp64.
        bias: (labels,); None where the layer of the model has no bias.
        losses: cross-validated -log p of each target that the probe was fitted on.
        accuracy: cross-validated accuracy.
    """

    head: HeadName
    weight: Tensor
    bias: Tensor | None
    losses: Tensor
    accuracy: float


def fit_probes(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Sequence[EncodedExample],
    *,
    batch_size: int,
    pooled: bool = False,
    adapted: bool = False,
) -> dict[HeadName, Probe]:
    """Return the probes of a classifier's base, by the states that they read.

    Args:
        model: sequence classifier or token classifier.
        tokenizer: tokenizer of the model.
        encoded: training examples.
        batch_size: number of examples per forward pass.
        pooled: whether probes on the pooled states of an encoder are wanted, too.
        adapted: whether the states are those of the model with its active adapters, not those of its base.

    Returns:
        The probes; empty where the head of the model does not end in a linear layer.
    """
    layer = classifier_layer(model)
    if layer is None:
        return {}
    examples = [encoded[index] for index in _some(encoded)]
    states: dict[HeadName, list[Tensor]] = {}
    classes: list[int] = []
    with nullcontext() if adapted else _without_adapters(model):
        for of_batch, labels in head_states(model, tokenizer, examples, batch_size=batch_size, pooled=pooled):
            classes += labels
            for head, values in of_batch.items():
                states.setdefault(head, []).append(values)
    intercept = layer[1].bias is not None
    probes: dict[HeadName, Probe] = {}
    for head, parts in states.items():
        features, targets = torch.cat(parts), torch.tensor(classes)
        found = fit(features, targets, model.config.num_labels, intercept=intercept or head != "own")
        bias = found.bias if intercept or head != "own" else None
        probes[head] = Probe(head, found.weight, bias, found.losses, float(found.hits.double().mean()))
    return probes


def _some(encoded: Sequence[EncodedExample]) -> list[int]:
    """Return the indices of the examples that a probe is fitted on: all, or a random choice if they are many."""
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(0)).tolist()
    chosen: list[int] = []
    targets = 0
    for index in order[:MOST_EXAMPLES]:
        if targets < MOST_TARGETS:
            chosen.append(index)
        targets += encoded[index].num_targets
    return chosen


def choose_probe(probes: Mapping[HeadName, Probe], expected: HeadName = "own") -> Probe:
    """Return the probe with the lowest cross-validated loss.

    Another probe than the expected one is chosen only if it is better than a guess, and if its loss is lower by more
    than one standard error of the difference over the examples.

    Args:
        probes: probes of one base on the same examples.
        expected: head that is taken unless another one is clearly better; "own" if there is no such probe.
    """
    chosen = probes.get(expected) or probes["own"]
    loss_of_guess = math.log(len(chosen.weight))
    for probe in sorted(probes.values(), key=lambda probe: float(probe.losses.mean())):
        gains = chosen.losses - probe.losses
        is_better = float(gains.mean()) > float(gains.std()) / len(gains) ** 0.5
        if is_better and float(probe.losses.mean()) < loss_of_guess:
            return probe
    return chosen


def evaluate_probe(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    probe: Probe,
    split: Split,
    row_format: RowFormat,
    *,
    batch_size: int,
) -> Evaluation:
    """Evaluate a probe on a split.

    Args:
        model: classifier whose own head reads the states of the probe. Its adapters are not active meanwhile.
        tokenizer: tokenizer of the model.
        probe: probe of its base.
        split: encoded examples.
        row_format: format of the examples.
        batch_size: number of examples per forward pass.
    """
    with _without_adapters(model), classifier_weights(model, probe.weight, probe.bias):
        return evaluate(model, tokenizer, split, row_format, batch_size=batch_size)


def evaluate_label_probe(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Split,
    split: Split,
    labels: Sequence[str],
    *,
    batch_size: int,
) -> Evaluation:
    """Fit a probe on the states from which a language model predicts the labels, and evaluate it on a split.

    Args:
        model: language model that generates labels. Its adapters are not active meanwhile.
        tokenizer: tokenizer of the model.
        train: training examples.
        split: examples to evaluate on.
        labels: all labels, in order.
        batch_size: number of examples per forward pass.
    """
    chosen = _some(train.encoded)
    classes = torch.tensor([label_index(labels, train.examples[index].label) for index in chosen])
    with _without_adapters(model):
        states = partial(label_states, model, tokenizer, batch_size=batch_size)
        found = fit(states([train.encoded[index] for index in chosen]), classes, len(labels))
        logits = states(split.encoded) @ found.weight.T + found.bias
    scores = zip(split.examples, logits.argmax(-1).tolist(), logits.log_softmax(-1).tolist(), strict=True)
    return evaluate_predictions(
        [
            Prediction(
                example.prompt,
                labels[label_index(labels, example.label)],
                labels[guess],
                dict(zip(labels, log_probabilities, strict=True)),
            )
            for example, guess, log_probabilities in scores
        ],
        labels,
    )


def _without_adapters(model: "PreTrainedModel") -> AbstractContextManager[None]:
    return use_adapters(model) if attached(model) else nullcontext()
