"""Scores of predictions for rows that have their targets, by the metrics of `Evaluation`."""

from collections.abc import Sequence
from typing import Any

from peftly.evaluation.entities import TagScheme, entity_f1
from peftly.evaluation.metrics import macro_f1
from peftly.evaluation.text_scores import text_scores
from peftly.inference import PredictionKind

__all__ = ["prediction_scores"]


def prediction_scores(
    kind: PredictionKind, pairs: Sequence[tuple[Any, Any]], labels: Sequence[str]
) -> dict[str, float | str]:
    """Return the scores of predictions, by the names of the fields of `Evaluation`.

    Args:
        kind: kind of the predictions.
        pairs: target and prediction of each row that has both.
        labels: labels or tags of the rows' format.

    Returns:
        The scores; empty without a pair, and for predictions that are compared with no target.
    """
    if not pairs:
        return {}
    if kind == "text":
        return text_scores([target for target, _ in pairs], [str(prediction) for _, prediction in pairs])
    if kind == "tags":
        return _tag_scores(pairs, labels)
    if kind != "label":
        return {}
    targets, predictions = [target for target, _ in pairs], [prediction for _, prediction in pairs]
    hits = sum(target == prediction for target, prediction in pairs)
    return {"accuracy": hits / len(pairs), "macro_f1": macro_f1(targets, predictions)}


def _tag_scores(
    pairs: Sequence[tuple[Sequence[str], Sequence[str | None]]], labels: Sequence[str]
) -> dict[str, float | str]:
    """Return the scores of tags. A word without a tag counts in the F1 of entities only, as outside of all."""
    tagged = [
        (target, tag) for targets, tags in pairs for target, tag in zip(targets, tags, strict=True) if tag is not None
    ]
    scores: dict[str, float | str] = {"words_without_tag": sum(len(targets) for targets, _ in pairs) - len(tagged)}
    if tagged:
        scores["token_accuracy"] = sum(target == tag for target, tag in tagged) / len(tagged)
    scheme = TagScheme.of(labels)
    if scheme is not None:
        outside = [[tag or "O" for tag in tags] for _, tags in pairs]
        scores["entity_f1"] = entity_f1([targets for targets, _ in pairs], outside, scheme)
    elif tagged:
        scores["macro_f1"] = macro_f1(*map(list, zip(*tagged, strict=True)))
    return scores
