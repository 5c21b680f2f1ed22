"""Entities by hand, as `seqeval` and CoNLL's script find them."""

import pytest

from peftly.evaluation.entities import entities, entity_f1, has_entities


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),  # side by side
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),  # another type begins, with B- or not
        ("O I-PER I-PER O", [("PER", 1, 3)]),  # an entity may begin with I-
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER O I-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("O B-PER-x I-PER-x", [("PER-x", 1, 3)]),  # a type may hold a dash
        ("", []),
    ],
)
def test_entities_of_a_text(tags, found):
    assert entities(tags.split()) == found


@pytest.mark.parametrize(
    ("true", "predicted", "f1"),
    [
        (["B-PER I-PER O B-LOC"], ["B-PER I-PER O B-LOC"], 1.0),
        (["B-PER I-PER O B-LOC"], ["B-PER O O B-LOC"], 0.5),  # one of two has its boundaries: 2*1 / (2+2)
        (["B-PER I-PER"], ["B-LOC I-LOC"], 0.0),  # the type is wrong
        (["B-PER O", "O B-LOC"], ["B-PER B-LOC", "O O"], 0.5),  # entities of different texts are different
        (["B-PER O B-LOC O B-ORG"], ["B-PER O O O O"], 0.5),  # precision 1, recall 1/3
        (["O O"], ["O O"], 0.0),
    ],
)
def test_f1_over_all_texts(true, predicted, f1):
    found = entity_f1([tags.split() for tags in true], [tags.split() for tags in predicted])
    assert found == pytest.approx(f1)


@pytest.mark.parametrize(
    ("tags", "is_bio"),
    [
        (("B-PER", "I-PER", "O"), True),
        (("B-PER", "O"), True),
        (("O",), False),
        (("NOUN", "VERB"), False),
        (("B-PER", "S-PER", "O"), False),
        (("B-", "O"), False),
    ],
)
def test_which_tags_hold_entities(tags, is_bio):
    assert has_entities(tags) == is_bio
