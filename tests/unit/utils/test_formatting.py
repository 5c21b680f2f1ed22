"""Numbers as text."""

import pytest

from peftly.utils.formatting import bytes_text, count_text, score_rows, score_text, seconds_text, share_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (18_432, "18.4 KB"),
        (4_700_000, "4.7 MB"),
        (12e9, "12 GB"),
        (5e15, "5e+03 TB"),
        (None, "—"),
    ],
)
def test_bytes(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.25, "7.2 s"), (245, "4 min 05 s"), (7800, "2 h 10 min"), (119.7, "2 min 00 s")]
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_counts_shares_and_scores():
    assert count_text(1_234_567) == "1,234,567"
    assert (share_text(0.8374), share_text(None)) == ("83.7%", "—")
    assert (score_text(0.123456), score_text(float("inf")), score_text(None)) == ("0.1235", "inf", "—")


def test_what_is_not_a_number_is_called_so():
    nan = float("nan")
    assert (share_text(nan), score_text(nan)) == ("not a number", "not a number")
    assert score_rows({"loss": nan, "accuracy": nan}) == [("loss", "not a number"), ("accuracy", "not a number")]
    assert score_rows({"loss": None, "accuracy": 0.5}) == [("loss", "not a number"), ("accuracy", "50.0%")]
    assert score_rows({}) == []


def test_scores_that_an_evaluation_lacks_are_left_out():
    scores = {"loss": 0.5, "accuracy": None, "entity_f1": 0.625, "labels": ["a"]}
    assert score_rows(scores) == [("loss", "0.5"), ("entity F1", "62.5%")]
