"""Multinomial logistic regression on standardised features, with its strength of regularisation by cross-validation.

The solver and the folds are scikit-learn's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from peftly.errors import TrainingError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

__all__ = ["Regression", "fit"]

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of regularisation, scikit-learn's `C`, from the strongest regularisation to the weakest."""

FOLDS = 5

LEAST_SPREAD = 1e-4
"""Least standard deviation of a feature, as a fraction of the root mean square of all features. A feature that varies
less is constant but for rounding errors, such as a unit that its base never uses, and these would be magnified."""

TOLERANCE = 1e-3
"""Gradient at which the solver stops."""


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

    Raises:
        TrainingError: a feature is not finite.
    """
    if damaged := int((~features.isfinite().all(1)).sum()):
        raise TrainingError(
            f"the base gives states that are not finite for {damaged:,} of {len(features):,} targets, so nothing can "
            "be learned from them; load it with --set dtype=float32, or look at its files"
        )
    # With several threads the results depend on their number, and on a busy machine such small products take 100 times
    # as long, since threads wait for each other.
    with threadpool_limits(1):
        return _fit(features.numpy(), classes, num_classes, intercept)


def _fit(values: NDArray[Any], classes: Tensor, num_classes: int, intercept: bool) -> Regression:
    """Return the regression of `fit`."""
    targets = classes.numpy()
    mean, spread = values.mean(0) * intercept, values.std(0)
    size = np.sqrt(np.mean(values**2))
    spread[spread <= LEAST_SPREAD * size] = size or 1.0
    scaled = (values - mean) / spread
    best: tuple[float, Tensor, Tensor] | None = None
    strength = STRENGTHS[0]
    folds = [(*fold, _regression(intercept)) for fold in _folds(targets)]
    for candidate in STRENGTHS:
        logits = np.zeros((len(targets), num_classes))
        for train, held_out, regression in folds:  # each starts from its solution for the stronger regularisation
            weight, bias = _solve(regression.set_params(C=candidate), scaled[train], targets[train], num_classes)
            logits[held_out] = scaled[held_out] @ weight.T + bias
        losses, hits = _losses_and_hits(torch.from_numpy(logits), classes)
        if best is not None and float(losses.mean()) >= best[0]:
            break  # the loss has one minimum
        best, strength = (float(losses.mean()), losses, hits), candidate
    assert best is not None
    weight, bias = _solve(_regression(intercept).set_params(C=strength), scaled, targets, num_classes)
    weight /= spread
    return Regression(torch.from_numpy(weight), torch.from_numpy(bias - weight @ mean), *best[1:])


def _folds(classes: NDArray[np.int64]) -> Iterator[tuple[Any, Any]]:
    """Yield the indices of the training and of the held-out examples of each fold; a class is spread over the folds.

    A single example is its own fold.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    smallest = np.unique(classes, return_counts=True)[1].min()
    if smallest >= FOLDS:
        yield from StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(classes, classes)
    elif len(classes) > 1:
        yield from KFold(min(FOLDS, len(classes)), shuffle=True, random_state=0).split(classes)
    else:
        yield [0], [0]


def _regression(intercept: bool) -> "LogisticRegression":
    """Return a regression that continues from its last solution."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(fit_intercept=intercept, max_iter=1000, tol=TOLERANCE, warm_start=True)


def _solve(
    regression: "LogisticRegression", features: NDArray[Any], classes: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fit a regression, and return its weight (classes, width) and bias (classes,).

    A class without an example gets the weight 0, and a bias as if it had a fraction of an example.

    Args:
        regression: regression with its settings.
        features: standardised features, (count, width).
        classes, num_classes: as for `fit`.
    """
    present = np.unique(classes)
    weight, bias = np.zeros((num_classes, features.shape[1])), np.zeros(num_classes)
    if len(present) > 1:
        regression.fit(features, classes)
        # of two classes scikit-learn has the difference
        scale = np.array([-0.5, 0.5]) if len(present) == 2 else np.ones(len(present))
        weight[present], bias[present] = scale[:, None] * regression.coef_, scale * regression.intercept_
    if regression.fit_intercept:
        bias[np.setdiff1d(range(num_classes), present)] = bias[present].min() - np.log(1 + len(classes))
    return weight, bias


def _losses_and_hits(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of the true classes, and whether they are the most likely ones.

    Args:
        logits: (count, classes).
        classes: (count,).
    """
    losses = -logits.log_softmax(-1).gather(-1, classes[:, None])[:, 0]
    return losses, logits.argmax(-1) == classes
