"""Several adapters of one task that decide together (Lester et al. 2021, section 6), scored in one batched pass."""

from typing import TYPE_CHECKING, Literal

from pydantic import (
    BaseModel,
)

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.methods import MethodConfig
else:
    # The methods need torch, which is only worth its second of import once a method is named.
    MethodConfig = BaseModel

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from peftly.data import RowFormat, Split
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vote = Literal["majority", "mean"]
"""How the members of an ensemble choose a label together."""

__all__ = ["Ensemble", "Vote", "evaluate_ensemble", "label_loss"]


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble makes of a split, beside what each member makes of it.

    Attributes:
        together: the scores of the ensemble; its loss is that of the mean probabilities, over rows.
        members: the scores of each alone, by the adapter's name, as `evaluate` gives them.
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
    """Score several adapters of a model, alone and together. Each batch holds its rows once for every member.

    Args:
        model: a model with these adapters; left as it was found.
        tokenizer: the model's own.
        split: rows with labels.
        row_format: how the rows became text; of kind "label".
        members: the adapters' names, two or more.
        vote: take the label that most members find likeliest, where they tie the one of the highest mean probability;
            or that one always.
        batch_size: rows that go through the model at once, counted once for every member.

    Raises:
        ConfigError: fewer than two members, a vote of another name, or rows without labels.
    """
    if vote not in get_args(Vote):
        raise ConfigError(f"vote={vote!r} is not one of {', '.join(get_args(Vote))}")
    if len(set(members)) < 2:
        raise ConfigError(f"an ensemble has two members or more; got {', '.join(members) or 'none'}")
    if row_format.kind != "label":
        raise ConfigError(f"an ensemble votes on labels, and these rows are of kind {row_format.kind!r}")
    count = len(split.examples)
    repeated = Split(
        split.examples * len(members), split.encoded * len(members), [name for name in members for _ in range(count)]
    )
    found = evaluate(model, tokenizer, repeated, row_format, batch_size=batch_size)
    parts = {name: found.predictions[place * count :][:count] for place, name in enumerate(members)}
    rows = [_decide(own, found.labels, vote) for own in zip(*parts.values(), strict=True)]
    return Ensemble(
        evaluate_predictions(rows, found.labels),
        {name: evaluate_predictions(own, found.labels) for name, own in parts.items()},
    )


def _decide(members: Sequence[Prediction], labels: Sequence[str], vote: Vote) -> Prediction:
    """Return what an ensemble makes of one row."""
    shares = [_probabilities(member) for member in members]
    mean = {label: sum(share[label] for share in shares) / len(shares) for label in labels}
    votes = {label: sum(member.predicted == label for member in members) for label in labels}
    chosen = max(labels, key=lambda label: (votes[label] if vote == "majority" else 0, mean[label]))
    logs = {label: math.log(max(share, 1e-300)) for label, share in mean.items()}
    return Prediction(members[0].prompt, members[0].label, chosen, logs)


def label_loss(predictions: Sequence[Prediction]) -> float:
    """Return the mean of -log of the probability of a row's own label, given that it is one of the labels.

    It compares what writes its labels, whose loss is over tokens, with an ensemble of it, whose loss this is.
    """
    shares = [max(_probabilities(row)[row.label], 1e-300) for row in predictions]
    return -math.fsum(map(math.log, shares)) / len(shares)


def _probabilities(prediction: Prediction) -> dict[str, float]:
    """Return the probability of each label, given that it is one of them."""
    highest = max(prediction.log_probabilities.values())
    weights = {label: math.exp(value - highest) for label, value in prediction.log_probabilities.items()}
    return {label: weight / sum(weights.values()) for label, weight in weights.items()}
