"""What may be given for a text, a pair of texts, and a prompt."""

import pytest
from tiny_tasks import opened

from peftly import classify, generate, tag_words
from peftly.data import Example, RowFormat
from peftly.errors import ConfigError, DataError

TEXTS = ["late again", "thanks for the help"]


@pytest.fixture(scope="module")
def classifier(task_base):
    return opened(task_base("bert"), task="sequence_classification", labels=["a", "b"])


@pytest.fixture(scope="module")
def tagger(task_base):
    return opened(task_base("bert"), task="token_classification", labels=["X", "Y"])


def test_a_classifier_takes_texts_as_generate_does(classifier):
    expected = classify(*classifier, list(map(Example, TEXTS)))
    assert expected[0] != expected[1]
    assert classify(*classifier, TEXTS) == expected
    assert classify(*classifier, tuple(TEXTS)) == expected, "a tuple at the top is a list of texts"
    assert classify(*classifier, iter(TEXTS)) == expected
    assert classify(*classifier, [{"text": text} for text in TEXTS]) == expected
    assert classify(*classifier, TEXTS[0]) == [pytest.approx(expected[0], rel=1e-9)]
    assert classify(*classifier, []) == []


def test_a_pair_of_texts_is_a_tuple_or_what_a_pipeline_takes(classifier):
    expected = classify(*classifier, [Example(TEXTS[0], pair=TEXTS[1])])
    assert classify(*classifier, [tuple(TEXTS)]) == expected
    assert classify(*classifier, [TEXTS]) == expected
    assert classify(*classifier, {"text": TEXTS[0], "text_pair": TEXTS[1]}) == expected
    assert classify(*classifier, TEXTS[:1]) != expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([5], "text 1 is 5; give a text"),
        ([TEXTS[0], None], "text 2 is None; give a text"),
        ([("a", "b", "c")], "text 1 is ('a', 'b', 'c')"),
        ([{"label": "a"}], "text 1 is {'label': 'a'}"),
        ([{"text": "a", "label": "b"}], "text 1 is {'text': 'a', 'label': 'b'}"),
        (b"late", "texts is a text or a list; got b'late'"),
        (None, "texts is a text or a list; got None"),
        (["a\ud800"], "text 1 holds half of a character"),
        (["late " * 300], "set max_length=160"),
    ],
)
def test_other_texts_are_refused(classifier, texts, message):
    with pytest.raises(DataError) as error:
        classify(*classifier, texts)
    assert message in str(error.value)


def test_texts_of_words(tagger):
    words = ["late", "again"]
    expected = tag_words(*tagger, [words])
    assert tag_words(*tagger, [RowFormat("tags", "{words}", "tags").format_prompt("late again")]) == expected
    for text, message in ((5, "text 1 is 5; give a list of words"), ([5], "give a list of words")):
        with pytest.raises(DataError, match=message):
            tag_words(*tagger, [text])
    with pytest.raises(DataError, match="set max_length=160"):
        tag_words(*tagger, [words * 200])


def test_a_model_of_another_task_is_refused(classifier, tagger, task_base):
    with pytest.raises(ConfigError, match=r"is not for sequence_classification; use peftly\.tag_words"):
        classify(*tagger, TEXTS)
    with pytest.raises(ConfigError, match=r"is not for token_classification; use peftly\.classify"):
        tag_words(*classifier, [["late"]])
    with pytest.raises(ConfigError, match=r"use peftly\.generate"):
        classify(*opened(task_base("t5"), task="seq2seq_lm"), TEXTS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (5, "prompts is a text or a list; got 5"),
        ([5], "the prompt is 5; give a text"),
        (["a", {"text": "b"}], "prompt 2 is {'text': 'b'}"),
        ([["a", "b"]], "the prompt is ['a', 'b']; give a text"),
        ([[{"content": "a"}]], "a list of messages with 'role' and 'content'"),
        ({"role": "user", "content": "a"}, "got one message alone"),
    ],
)
def test_other_prompts_are_refused(task_base, prompts, message):
    with pytest.raises(DataError) as error:
        generate(*opened(task_base("t5"), task="seq2seq_lm"), prompts)
    assert message in str(error.value)
