"""Entities in tags of the BIO kind, and how many of them a model finds: the rule of `seqeval` and of CoNLL's script."""

from collections.abc import Iterable, Sequence

__all__ = ["Entity", "entities", "entity_f1", "has_entities"]

Entity = tuple[str, int, int]
"""A kind, the number of the first word, and that after the last."""


def has_entities(tags: Iterable[str]) -> bool:
    """Say whether these are tags of entities: O, B-kind and I-kind, and nothing else."""
    tags = set(tags)
    return any(tag.startswith(("B-", "I-")) for tag in tags) and all(
        tag == "O" or (tag.startswith(("B-", "I-")) and len(tag) > 2) for tag in tags
    )


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities in the tags of one row.

    One begins at every B- tag, and at an I- tag that does not go on with an entity of its own kind; it ends before
    the next that begins, and before every O.
    """
    found: list[Entity] = []
    kind, start = None, 0
    for at, tag in enumerate([*tags, "O"]):
        part, _, named = tag.partition("-")
        goes_on = part == "I" and named == kind
        if kind is not None and not goes_on:
            found.append((kind, start, at))
            kind = None
        if part != "O" and not goes_on:
            kind, start = named, at
    return found


def entity_f1(golds: Sequence[Sequence[str]], taken: Sequence[Sequence[str]]) -> float:
    """Return the F1 of entities over all rows; one counts as found if kind and boundaries are right.

    Args:
        golds: the rows' own tags.
        taken: the model's, for the same words.

    Returns:
        2 found / (true + predicted), and 0 where there is neither, as `seqeval` has it.
    """
    hits = total = 0
    for own, guess in zip(golds, taken, strict=True):
        true, predicted = set(entities(own)), set(entities(guess))
        hits += len(true & predicted)
        total += len(true) + len(predicted)
    return 2 * hits / total if total else 0.0
