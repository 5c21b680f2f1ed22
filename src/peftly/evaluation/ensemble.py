"""Evaluation of several adapters that vote on a label (Lester et al. 2021, section 6), in one batched pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from peftly.data import RowFormat, Split
from peftly.errors import ConfigError
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Ensemble", "Vote", "evaluate_ensemble", "label_loss", "vote_on"]

Vote = Literal["majority", "mean"]
"""Rules by which the members of an ensemble choose a label."""


@dataclass(frozen=True)
class Ensemble:
    """Evaluation of an ensemble and of its members.

    Attributes:
        together: evaluation of the ensemble. Its loss is the loss of the mean probabilities, over examples.
        members: evaluation of each member alone, by the name of its adapter, as `evaluate` returns it.
    """

    together: Evaluation
    members: dict[str, Evaluation]


def evaluate_ensemble(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    row_format: RowFormat,
    members: Sequence[str],
    *,
    vote: Vote = "majority",
    batch_size: int = 32,
) -> Ensemble:
    """Evaluate several adapters of a model, alone and together. Every example is evaluated once per member.

    Args:
        model: model with these adapters. Its modes and active adapters are restored afterwards.
        tokenizer: tokenizer of the model.
        split: examples with labels.
        row_format: format of the examples, of kind "label".
        members: names of two adapters or more.
        vote: "majority": the most frequent of the members' most likely labels, and of equally frequent labels the one
            with the highest mean probability; "mean": the label with the highest mean probability.
        batch_size: number of examples per forward pass, counted once per member.

    Raises:
        ConfigError: there are fewer than two members, `vote` does not exist, or the examples have no labels.
    """
    if vote not in get_args(Vote):
        raise ConfigError(f"vote={vote!r} is not one of {', '.join(get_args(Vote))}")
    if len(set(members)) < 2:
        raise ConfigError(f"an ensemble has two members or more; got {', '.join(members) or 'none'}")
    if row_format.kind != "label":
        raise ConfigError(f"an ensemble votes on labels, and these examples are of kind {row_format.kind!r}")
    count = len(split.examples)
    repeated = Split(
        [*split.examples] * len(members),
        [*split.encoded] * len(members),
        [name for name in members for _ in range(count)],
    )
    evaluation = evaluate(model, tokenizer, repeated, row_format, batch_size=batch_size)
    labels = evaluation.labels
    by_member = {name: evaluation.predictions[index * count :][:count] for index, name in enumerate(members)}
    voted = [_vote(predictions, labels, vote) for predictions in zip(*by_member.values(), strict=True)]
    return Ensemble(
        evaluate_predictions(voted, labels),
        {name: evaluate_predictions(predictions, labels) for name, predictions in by_member.items()},
    )


def _vote(members: Sequence[Prediction], labels: Sequence[str], vote: Vote) -> Prediction:
    """Return the prediction of an ensemble from its members' predictions for one example."""
    chosen, mean = vote_on([_probabilities(member) for member in members], labels, vote)
    log_probabilities = {label: math.log(max(value, 1e-300)) for label, value in mean.items()}
    return Prediction(members[0].prompt, members[0].label, chosen, log_probabilities)


def vote_on(members: Sequence[Mapping[str, float]], labels: Sequence[str], vote: Vote) -> tuple[str, dict[str, float]]:
    """Return the label that the members of an ensemble choose for one example, and the mean probabilities.

    Args:
        members: probability of each label, from each member.
        labels: the labels, in order.
        vote: see `evaluate_ensemble`.
    """
    mean = {label: sum(values[label] for values in members) / len(members) for label in labels}
    choices = [max(labels, key=values.__getitem__) for values in members]
    chosen = max(labels, key=lambda label: (choices.count(label) if vote == "majority" else 0, mean[label]))
    return chosen, mean


def label_loss(predictions: Sequence[Prediction]) -> float:
    """Return the mean of -log of the true label's probability among all labels.

    The loss of an ensemble is of this kind. Models that generate labels have a loss over tokens, so this function makes
    the two comparable.

    Args:
        predictions: predictions for at least one example, with log-probabilities.
    """
    probabilities = [max(_probabilities(prediction)[prediction.label], 1e-300) for prediction in predictions]
    return -math.fsum(map(math.log, probabilities)) / len(probabilities)


def _probabilities(prediction: Prediction) -> dict[str, float]:
    """Return the probability of each label, normalised over all labels."""
    highest = max(prediction.log_probabilities.values())
    weights = {label: math.exp(value - highest) for label, value in prediction.log_probabilities.items()}
    return {label: weight / sum(weights.values()) for label, weight in weights.items()}
