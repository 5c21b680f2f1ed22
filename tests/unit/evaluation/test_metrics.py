"""Macro-F1 and the confusion matrix equal those of scikit-learn; an example's label is one of the labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from peftly.errors import DataError
from peftly.evaluation.metrics import Prediction, confusion_matrix, evaluate_predictions, label_index, macro_f1

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(PAIRS)
def test_metrics_equal_those_of_scikit_learn(pairs):
    true, predicted = zip(*pairs, strict=True)
    expected = metrics.f1_score(true, predicted, average="macro", zero_division=0)
    assert macro_f1(true, predicted) == pytest.approx(expected, rel=1e-15)
    names = "abcde"
    assert macro_f1([names[a] for a in true], [names[b] for b in predicted]) == macro_f1(true, predicted)
    matrix = metrics.confusion_matrix(true, predicted, labels=range(5))
    assert [list(counts) for counts in confusion_matrix(true, predicted, 5)] == matrix.tolist()


def test_the_index_of_a_label():
    assert label_index(["no", "yes"], "yes") == 1
    for label in ("maybe", None):
        with pytest.raises(DataError, match=f"an example has the label {label!r}; the labels are 'no', 'yes'"):
            label_index(["no", "yes"], label)


def test_the_loss_of_certain_predictions_is_no_negative_zero():
    found = evaluate_predictions([Prediction("text", "yes", "yes", {"yes": 0.0})], ["yes"])
    assert str(found.loss) == "0.0"
