"""Digests of examples: equal for equal examples, and the same on every machine."""

from dataclasses import replace

import pytest

from peftly.data import Example, example_digest, pack_digests, unpack_digests
from peftly.errors import DataError

EXAMPLES = [
    Example("say", " yes"),
    Example("say", " no"),
    Example("ask", " yes"),
    Example("say", " yes", label="yes"),
    Example("say", " yes", pair="more"),
    Example(messages=({"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"})),
    Example(messages=({"role": "user", "content": "say"}, {"role": "assistant", "content": "no"})),
    Example("a b", words=("a", "b"), tags=("X", "Y")),
    Example("a b", words=("a", "b"), tags=("X", "X")),
]


def test_digests_tell_examples_apart():
    assert len(set(map(example_digest, EXAMPLES))) == len(EXAMPLES)
    assert list(map(example_digest, EXAMPLES)) == [example_digest(replace(example)) for example in EXAMPLES]
    assert example_digest(Example("say", "yes ")) == example_digest(EXAMPLES[0]), "a setting can add a space"
    assert example_digest(replace(EXAMPLES[0], findings=(("kind", "detail"),))) == example_digest(EXAMPLES[0])


def test_digests_in_a_file():
    digests = [0, 1, 2**64 - 1]
    text = pack_digests(digests)
    assert text == "AAAAAAAAAAABAAAAAAAAAP//////////"
    assert list(unpack_digests(text)) == digests
    assert list(unpack_digests(pack_digests([]))) == []
    for damaged in ("%", "AAAA", None):
        with pytest.raises(DataError, match="damaged"):
            unpack_digests(damaged)
