"""Entities in BIO tags and their F1, by the rules of `seqeval` and of CoNLL's script."""

from collections.abc import Iterable, Sequence

__all__ = ["Entity", "entities", "entity_f1", "has_entities"]

Entity = tuple[str, int, int]
"""Type of an entity, index of its first word, and index after its last word."""


def has_entities(tags: Iterable[str]) -> bool:
    """Return whether all tags are BIO tags (O, B-type, I-type) and at least one is the tag of an entity."""
    tags = set(tags)
    return any(tag.startswith(("B-", "I-")) for tag in tags) and all(
        tag == "O" or (tag.startswith(("B-", "I-")) and len(tag) > 2) for tag in tags
    )


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities in the tags of one text.

    An entity begins at every B- tag, and at an I- tag that does not continue an entity of the same type. It ends in
    front of the next entity and in front of every O.

    Args:
        tags: tag of each word.
    """
    found: list[Entity] = []
    open_type, start = None, 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, entity_type = tag.partition("-")
        is_continued = prefix == "I" and entity_type == open_type
        if open_type is not None and not is_continued:
            found.append((open_type, start, index))
            open_type = None
        if prefix != "O" and not is_continued:
            open_type, start = entity_type, index
    return found


def entity_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the F1 of entities over all texts. An entity is correct if its type and its boundaries are.

    Args:
        true: true tags of each text.
        predicted: predicted tags of each text, for the same words.

    Returns:
        2 hits / (true + predicted entities); 0 without entities, as in `seqeval`.
    """
    hits = total = 0
    for true_tags, predicted_tags in zip(true, predicted, strict=True):
        true_entities, predicted_entities = set(entities(true_tags)), set(entities(predicted_tags))
        hits += len(true_entities & predicted_entities)
        total += len(true_entities) + len(predicted_entities)
    return 2 * hits / total if total else 0.0
