"""Scores of the untouched base, beside which the scores of an adapter mean something."""

from collections.abc import Callable
from contextlib import nullcontext

from peftly.adapters import attached, use_adapters
from peftly.data import Data
from peftly.evaluation import Evaluation, Probe, evaluate, evaluate_label_probe, evaluate_probe
from peftly.models import TASKS, Base, has_new_classifier, task_of
from peftly.runs.config import RunConfig
from peftly.runs.held_out import evaluation_split

__all__ = ["BASE", "PROBE", "baseline_scores"]

BASE = "untouched base"
"""Name of the scores of the base without adapters."""

PROBE = "linear probe"
"""Name of the scores of a linear probe of the base without adapters."""


def baseline_scores(
    base: Base, probe: Probe | None, data: Data, config: RunConfig, log: Callable[[str], None]
) -> dict[str, Evaluation]:
    """Return the scores of the untouched base, and of a linear probe of it, on the held-out examples, by name.

    A classifier whose head is new has no untouched base: its labels would be random. There is a probe only where the
    examples have labels or tags.

    Args:
        base: base with its adapters, which are not active meanwhile.
        probe: probe of a classifier, as `choose_head` returns it; None: there is none, or the base generates labels.
        data: data of the run.
        config: settings of the run.
        log: function that receives each line of progress.

    Returns:
        The scores; empty if `config.baselines` is false, or if the data have no held-out examples.
    """
    name, split = evaluation_split(data)
    model, tokenizer, batch_size = base.model, base.tokenizer, config.train.evaluation_batch_size
    is_head = TASKS[task_of(model) or "causal_lm"].is_classification
    has_labels = not (is_head and has_new_classifier(model))
    is_probed = probe is not None or (not is_head and data.row_format.kind == "label")
    names = [BASE] * has_labels + [PROBE] * is_probed
    if split is None or not config.baselines or not names:
        return {}
    log(f"evaluating the {' and the '.join(names)} on the {name} split")
    scores: dict[str, Evaluation] = {}
    if has_labels:
        with use_adapters(model) if attached(model) else nullcontext():
            scores[BASE] = evaluate(model, tokenizer, split, data.row_format, batch_size=batch_size)
    if probe is not None:
        scores[PROBE] = evaluate_probe(model, tokenizer, probe, split, data.row_format, batch_size=batch_size)
    elif is_probed:
        labels = data.row_format.labels
        scores[PROBE] = evaluate_label_probe(model, tokenizer, data.train, split, labels, batch_size=batch_size)
    return scores
