"""Entities in tags of words and their F1, by the rules of CoNLL's script and of `seqeval`, for all common schemes.

A tag of an entity has a mark and a type, as in B-PER or, in some data, PER-B. The marks of the schemes:

IOB2, IOB1, IO   B and I: first word and further words; in IOB1 and IO an entity can begin with I
IOBES            E: last word; S: single word
BILOU            L for E, U for S
BMES, BMEWO      M for I, W for S
IOE1, IOE2       I and E
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ["Entity", "TagScheme", "entities", "entity_f1", "has_entities"]

Entity = tuple[str, int, int]
"""Type of an entity, index of its first word, and index after its last word."""

_OUTSIDE = ("O", "o")
_MARKS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}
"""Mark of IOBES by the mark in a tag."""

_SCHEMES = tuple(map(frozenset, ("BIES", "BILU", "BMES", "BMEW", "BIEW")))
_FORMS = (
    re.compile(r"(?P<mark>[BIESLUMW])[-_:/](?P<type>.+)", re.IGNORECASE | re.DOTALL),
    re.compile(r"(?P<type>.+)[-_:/](?P<mark>[BIESLUMW])", re.IGNORECASE | re.DOTALL),
    re.compile(r"(?P<mark>[BIESLUMW])(?P<type>)"),
)
"""A tag with its mark in front, with its mark at the end, and a mark without a type."""


@dataclass(frozen=True)
class TagScheme:
    """Form of the tags of entities.

    Attributes:
        form: pattern of a tag that is not outside, with the groups `mark` and `type`.
    """

    form: re.Pattern[str]

    @classmethod
    def of(cls, tags: Iterable[str]) -> Self | None:
        """Return the scheme of a set of tags; None if they are not tags of entities.

        Args:
            tags: all tags of a data set.
        """
        inside = [tag for tag in dict.fromkeys(tags) if tag not in _OUTSIDE]
        for form in _FORMS:
            matches = [form.fullmatch(tag) for tag in inside]
            marks = {match["mark"].upper() for match in matches if match}
            if inside and all(matches) and any(marks <= scheme for scheme in _SCHEMES):
                has_types = form is not _FORMS[-1]
                # Marks without a type could be tags of another kind, so they must be able to form a longer entity.
                if has_types or ("B" in marks and len(marks) > 1):
                    return cls(form)
        return None

    def split(self, tag: str) -> tuple[str, str]:
        """Return mark and type of a tag; the mark is one of B, I, E, S and O (outside an entity)."""
        match = None if tag in _OUTSIDE else self.form.fullmatch(tag)
        return ("O", "") if match is None else (_MARKS[match["mark"].upper()], match["type"])


def has_entities(tags: Iterable[str]) -> bool:
    """Return whether a set of tags are the tags of entities."""
    return TagScheme.of(tags) is not None


def entities(tags: Sequence[str], scheme: TagScheme) -> list[Entity]:
    """Return the entities in the tags of one text.

    An entity goes on with an I or E of the same type after a B or an I. Every other tag of an entity begins one, so
    that tags which break the rules of their scheme, as predicted tags can, have entities too.

    Args:
        tags: tag of each word.
        scheme: form of the tags.
    """
    found: list[Entity] = []
    open_type, start, previous = None, 0, "O"
    for index, tag in enumerate([*tags, "O"]):
        mark, entity_type = scheme.split(tag)
        is_continued = entity_type == open_type and mark in ("I", "E") and previous in ("B", "I")
        if open_type is not None and not is_continued:
            found.append((open_type, start, index))
            open_type = None
        if mark != "O" and not is_continued:
            open_type, start = entity_type, index
        previous = mark
    return found


def entity_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: TagScheme) -> float:
    """Return the F1 of entities over all texts. An entity is correct if its type and its boundaries are.

    Args:
        true: true tags of each text.
        predicted: predicted tags of each text, for the same words.
        scheme: form of the tags.

    Returns:
        2 hits / (true + predicted entities); 0 without entities, as in `seqeval`.
    """
    hits = total = 0
    for true_tags, predicted_tags in zip(true, predicted, strict=True):
        true_entities, predicted_entities = set(entities(true_tags, scheme)), set(entities(predicted_tags, scheme))
        hits += len(true_entities & predicted_entities)
        total += len(true_entities) + len(predicted_entities)
    return 2 * hits / total if total else 0.0
