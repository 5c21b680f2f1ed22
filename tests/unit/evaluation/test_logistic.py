"""Logistic regression with a strength of regularisation chosen by cross-validation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from peftly.errors import TrainingError
from peftly.evaluation import logistic


def examples(num_classes, count=60, width=8):
    generator = torch.Generator().manual_seed(num_classes)
    classes = torch.arange(count) % num_classes
    centres = torch.randn(num_classes, width, generator=generator, dtype=torch.double)
    features = centres[classes] + torch.randn(count, width, generator=generator, dtype=torch.double)
    return features * torch.linspace(0.1, 5, width) + 7, classes


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_solution_is_that_of_the_standardised_features(num_classes, strength, intercept, monkeypatch):
    monkeypatch.setattr(logistic, "STRENGTHS", (strength,))
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-10)
    features, classes = examples(num_classes)
    found = logistic.fit(features, classes, num_classes, intercept=intercept)
    scaled = features / features.std(0, unbiased=False)
    scaled = scaled - scaled.mean(0) * intercept
    expected = LogisticRegression(C=strength, fit_intercept=intercept, tol=1e-10, max_iter=10_000)
    expected.fit(scaled.numpy(), classes.numpy())
    logits = features @ found.weight.T + found.bias
    np.testing.assert_allclose(logits.softmax(-1).numpy(), expected.predict_proba(scaled.numpy()), atol=1e-4)
    assert intercept or not found.bias.any()


def test_the_strength_with_the_lowest_cross_validated_loss_is_chosen():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(80, 40, generator=generator, dtype=torch.double)
    classes = torch.randint(2, (80,), generator=generator)
    weak = logistic.fit(noise, classes, 2)
    assert weak.losses.mean() < 0.75, "features that tell nothing are hardly used"
    assert weak.weight.abs().max() < 0.05
    informative = noise.clone()
    informative[:, 0] = classes * 4.0
    strong = logistic.fit(informative, classes, 2)
    assert strong.hits.all()
    assert strong.losses.mean() < 0.2
    again = logistic.fit(informative, classes, 2)
    assert torch.equal(strong.weight, again.weight)


def test_cross_validated_losses_are_in_the_order_of_the_examples():
    features, classes = examples(2)
    features = torch.where(classes[:, None] == 1, 5.0, -5.0).double() + 0.1 * features
    classes[17] = 1 - classes[17]
    found = logistic.fit(features, classes, 2)
    assert found.losses.argmax() == 17
    assert (~found.hits).nonzero().flatten().tolist() == [17]


@pytest.mark.parametrize("scale", [0.0, 1e-32, 1e-9])
def test_units_that_are_constant_get_no_weight(scale):
    """Three units of minilm-l6 have states with a standard deviation of 1e-32."""
    features, classes = examples(2)
    expected = logistic.fit(features, classes, 2)
    constant = 3.0 * (scale == 0) + scale * features[:, :1]
    found = logistic.fit(torch.cat([features, constant], 1), classes, 2)
    torch.testing.assert_close(found.weight[:, :-1], expected.weight, rtol=1e-4, atol=1e-6)
    assert found.weight[:, -1].abs().max() < 1e-6


def test_classes_with_one_example_or_none():
    features, classes = examples(3, count=9)
    classes[classes == 2] = 0
    classes[0] = 2
    found = logistic.fit(features, classes, 5)
    assert found.weight.shape == (5, 8)
    assert torch.isfinite(found.weight).all()
    assert torch.isfinite(found.losses).all()
    assert (features @ found.weight.T + found.bias).argmax(-1).tolist() == classes.tolist()
    only = logistic.fit(features[:1], classes[:1], 5)
    assert torch.isfinite(only.weight).all()
    assert only.bias.argmax() == classes[0], "the only class that was seen"


@pytest.mark.parametrize("intercept", [True, False])
def test_rounding_errors_of_a_constant_feature_are_not_magnified(intercept):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(20, 8, generator=generator, dtype=torch.double).mul(1e-7).add(0.3)
    classes = torch.arange(20) % 2
    found = logistic.fit(features, classes, 2, intercept=intercept)
    moved = features + 0.01
    logits = moved @ found.weight.T + found.bias
    assert logits.abs().max() < 0.1, "such features tell nothing"


def test_a_feature_that_is_not_finite_is_refused_in_one_line():
    features, classes = examples(2)
    features[3, 2], features[5, 1] = float("nan"), float("inf")
    with pytest.raises(TrainingError, match=r"not finite for 2 of 60 targets.*--set dtype=float32"):
        logistic.fit(features, classes, 2)


def test_one_thread_computes_so_that_the_result_does_not_depend_on_their_number(monkeypatch):
    solve, counts = logistic._solve, set()

    def counting(*args):
        counts.update(pool["num_threads"] for pool in threadpool_info())
        return solve(*args)

    monkeypatch.setattr(logistic, "_solve", counting)
    with threadpool_limits(2):
        logistic.fit(*examples(2), 2)
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}, "as before"
    assert counts == {1}
