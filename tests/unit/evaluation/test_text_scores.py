"""Scores of generated texts: values by hand, and texts in scripts that the libraries' own tokenizers do not know."""

import sys

import pytest

from peftly.evaluation.text_scores import missing_scores, text_scores, word_tokens


def test_scores_by_hand():
    scores = text_scores(["the cat sat", "a dog"], ["the cat ran ", "a dog"])
    assert scores["exact_match"] == 0.5  # spaces at the ends do not count
    # First text: 2 of 3 words, 1 of 2 pairs, and "the cat" of 3 words in order.
    assert scores["rouge_1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["rouge_2"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["rouge_l"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["bleu_tokenizer"] == "13a"


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("a city by the sea", "13a"),
        ("yes", "13a"),  # fewer words than BLEU's longest n-gram
        ("город у моря", "13a"),
        ("مدينة على البحر", "13a"),
        ("海边的城市", "zh"),
        ("海辺の町です", "char"),
        ("เมืองริมทะเล", "char"),
        ("👍", "13a"),
    ],
)
def test_equal_texts_have_the_highest_scores_in_every_script(text, tokenizer):
    scores = text_scores([text], [text])
    assert (scores["exact_match"], scores["rouge_1"], scores["rouge_l"]) == (1, 1, 1)
    assert (scores["chrf"], scores["bleu"]) == (pytest.approx(100), pytest.approx(100))
    assert scores["bleu_tokenizer"] == tokenizer
    other = text_scores([text], ["zzz"])
    assert (other["exact_match"], other["rouge_1"], other["chrf"]) == (0, 0, 0)


def test_a_part_of_a_chinese_text():
    scores = text_scores(["海边的城市"], ["海边的村庄"])
    assert scores["rouge_1"] == pytest.approx(3 / 5)
    assert scores["rouge_l"] == pytest.approx(3 / 5)
    assert 0 < scores["bleu"] < 100


def test_tokens_of_every_script():
    assert word_tokens("Größe 3, naïve!") == ["größe", "3", "naïve"]
    assert word_tokens("GPT用于城市。") == ["gpt", "用", "于", "城", "市"]
    assert word_tokens("a + b 👍") == ["a", "+", "b", "👍"]


def test_missing_libraries_are_named(monkeypatch):
    assert missing_scores() is None
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    assert "pip install 'peftly[scores]'" in (missing_scores() or "")
    assert text_scores(["a", "b"], ["a", "c"]) == {"exact_match": 0.5}
