"""Entities by hand, as `seqeval` and CoNLL's script find them."""

import pytest

from peftly.evaluation.entities import TagScheme, entities, entity_f1, has_entities

BIO = TagScheme.of(("B-PER", "I-PER", "O"))


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
    assert entities(tags.split(), BIO) == found


SENTENCE = [("PER", 0, 2), ("PER", 3, 4), ("LOC", 5, 8)]


@pytest.mark.parametrize(
    "tags",
    [
        "B-PER I-PER O B-PER O B-LOC I-LOC I-LOC",
        "I-PER I-PER O I-PER O I-LOC I-LOC I-LOC",  # IO, and IOB1
        "B-PER E-PER O S-PER O B-LOC I-LOC E-LOC",
        "B-PER L-PER O U-PER O B-LOC I-LOC L-LOC",
        "B-PER E-PER O S-PER O B-LOC M-LOC E-LOC",
        "B-PER E-PER O W-PER O B-LOC M-LOC E-LOC",
        "I-PER E-PER O E-PER O I-LOC I-LOC E-LOC",  # IOE2
        "PER-B PER-I O PER-B O LOC-B LOC-I LOC-I",
        "PER_B PER_E O PER_S O LOC_B LOC_I LOC_E",
        "B_PER I_PER O B_PER O B_LOC I_LOC I_LOC",
        "b-PER i-PER o b-PER o b-LOC i-LOC i-LOC",
    ],
)
def test_a_sentence_in_every_scheme(tags):
    tags = tags.split()
    scheme = TagScheme.of(tags)
    assert entities(tags, scheme) == SENTENCE
    assert entity_f1([tags], [tags], scheme) == 1.0
    without_the_last = [*tags[:5], "O", "O", "O"]
    assert entity_f1([tags], [without_the_last], scheme) == pytest.approx(2 * 2 / (3 + 2))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1: B- only between two of a type
        ("B-PER E-PER B-PER E-PER S-PER S-PER", [("PER", 0, 2), ("PER", 2, 4), ("PER", 4, 5), ("PER", 5, 6)]),
        ("S-PER I-PER", [("PER", 0, 1), ("PER", 1, 2)]),  # predicted tags can break the rules
        ("E-PER I-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER S-PER", [("PER", 0, 1), ("PER", 1, 2)]),
    ],
)
def test_neighbours_and_broken_rules(tags, found):
    scheme = TagScheme.of(("B-PER", "I-PER", "E-PER", "S-PER", "O"))
    assert entities(tags.split(), scheme) == found


def test_marks_without_a_type_are_entities_of_one_type():
    scheme = TagScheme.of(("B", "I", "O"))
    assert entities(["O", "B", "I", "O", "B"], scheme) == [("", 1, 3), ("", 4, 5)]
    words = TagScheme.of(("B", "M", "E", "S"))  # words in a text without spaces
    assert entities(["S", "B", "E", "B", "M", "E"], words) == [("", 0, 1), ("", 1, 3), ("", 3, 6)]


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
    found = entity_f1([tags.split() for tags in true], [tags.split() for tags in predicted], BIO)
    assert found == pytest.approx(f1)


@pytest.mark.parametrize(
    ("tags", "are_entities"),
    [
        (("B-PER", "I-PER", "O"), True),
        (("B-PER", "O"), True),
        (("O",), False),
        (("NOUN", "VERB"), False),
        (("B-PER", "S-PER", "O"), True),
        (("B-", "O"), False),
        (("B-PER", "X-PER", "O"), False),
        (("I-PER", "M-PER", "L-PER"), False),  # marks of no one scheme
        (("B-PER", "PER-I", "O"), False),
        (("B", "O"), False),
        (("E", "S", "O"), False),
        (("ADJ", "NOUN", "X"), False),
    ],
)
def test_which_tags_hold_entities(tags, are_entities):
    assert has_entities(tags) == are_entities
