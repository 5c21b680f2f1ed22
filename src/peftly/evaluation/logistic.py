"""Multinomial logistic regression on standardised features, with its strength of regularisation by cross-validation.

The solution is that of scikit-learn's `LogisticRegression`, which a run does not import: that takes longer than all of
the regressions of a run.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Regression", "fit", "losses_and_hits"]

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of regularisation, as scikit-learn's `C`, from the strongest regularisation to the weakest."""

FOLDS = 5


class Regression(NamedTuple):
    """A fitted regression.

    Attributes:
        weight: (classes, width), for features that are not standardised.
        bias: (classes,); zeros without an intercept.
        losses: cross-validated -log p of each example, (count,).
        hits: whether the cross-validated prediction for each example is right, (count,).
    """

    weight: Tensor
    bias: Tensor
    losses: Tensor
    hits: Tensor


def fit(features: Tensor, classes: Tensor, num_classes: int, *, intercept: bool = True) -> Regression:
    """Return the regression whose strength of regularisation has the lowest cross-validated loss.

    Args:
        features: (count, width), in fp64.
        classes: class of each example, (count,).
        num_classes: number of classes; some may have no example.
        intercept: whether the regression has a bias.
    """
    mean = features.mean(0) if intercept else torch.zeros_like(features[0])
    spread = features.std(0, unbiased=False).clamp_min(1e-6)
    scaled = (features - mean) / spread
    held_out = _folds(classes)
    best: tuple[float, Tensor, Tensor] | None = None
    strength, weights = STRENGTHS[0], None
    for candidate in STRENGTHS:
        weights = _solve(scaled, classes, num_classes, ~held_out, candidate, intercept=intercept, start=weights)
        losses, hits = losses_and_hits(_logits(scaled, weights), classes.expand(len(held_out), -1))
        losses, hits = losses[held_out], hits[held_out]
        if best is not None and float(losses.mean()) >= best[0]:
            break  # the loss has one minimum
        best, strength = (float(losses.mean()), losses, hits), candidate
    assert best is not None
    everything = torch.ones(1, len(features), dtype=torch.bool)
    (final,) = _solve(scaled, classes, num_classes, everything, strength, intercept=intercept)
    weight = final[:-1].T / spread
    return Regression(weight, final[-1] - weight @ mean, *_in_order(held_out, best[1], best[2]))


def losses_and_hits(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of the true classes, and whether they are the most likely ones.

    Args:
        logits: (..., classes).
        classes: (...).
    """
    losses = -logits.log_softmax(-1).gather(-1, classes[..., None])[..., 0]
    return losses, logits.argmax(-1) == classes


def _folds(classes: Tensor) -> Tensor:
    """Return for each fold whether each example is held out, (folds, count). Each class is spread over the folds."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    order = order[classes[order].argsort(stable=True)]
    fold = torch.empty_like(classes)
    fold[order] = torch.arange(len(classes)) % FOLDS
    return torch.stack([fold == number for number in range(FOLDS) if bool((fold == number).any())])


def _in_order(held_out: Tensor, *values: Tensor) -> list[Tensor]:
    """Return values, which are ordered by fold, in the order of the examples."""
    indices = held_out.nonzero()[:, 1]
    return [torch.empty_like(value).index_copy_(0, indices, value) for value in values]


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    """Return the logits of each regression, (regressions, count, classes)."""
    return features @ weights[:, :-1] + weights[:, -1:]


def _solve(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    included: Tensor,
    strength: float,
    *,
    intercept: bool,
    start: Tensor | None = None,
) -> Tensor:
    """Return the solutions of several regressions on parts of the examples, (regressions, width + 1, classes).

    Each minimises Σ -log p + |weight|² / (2 strength); the last row is the bias.

    Args:
        features, classes, num_classes, intercept: as for `fit`, with standardised features.
        included: whether each regression has each example, (regressions, count).
        strength: inverse strength of regularisation.
        start: values to start from; None: zeros.
    """
    count = len(included)
    parameters = features.new_zeros(count, features.shape[1] + 1, num_classes) if start is None else start.clone()
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    sizes = included.sum(1)

    def objective() -> Tensor:
        optimizer.zero_grad()
        weights = parameters if intercept else F.pad(parameters[:, :-1], (0, 0, 0, 1))
        losses, _ = losses_and_hits(_logits(features, weights), classes.expand(count, -1))
        penalty = parameters[:, :-1].square().sum((1, 2)) / (2 * strength)
        total = (((losses * included).sum(1) + penalty) / sizes).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return parameters.detach()
