"""The best evaluation of a run, and its record."""

import math

from peftly.data import Data
from peftly.evaluation import Evaluation, metrics_of, perplexity_of
from peftly.training.callbacks import EvaluationRecord
from peftly.training.config import TrainConfig

__all__ = ["best_line", "evaluation_record", "is_best", "is_improvement", "metric_of_best", "stop_reason"]


def metric_of_best(config: TrainConfig, data: Data) -> str:
    """Return the metric by which the best evaluation is chosen: the configured one, or that of the task.

    The loss of a classifier rises again while its accuracy still does: it becomes surer of its mistakes. So the score
    of the task decides (benchmarks/best_adapter.py).

    Args:
        config: training settings.
        data: training and validation examples.
    """
    if config.metric_for_best_model != "auto":
        return config.metric_for_best_model
    loss, *scores = metrics_of(data.row_format)
    return scores[0] if scores else loss


def best_line(config: TrainConfig, data: Data) -> str:
    """Return a line on the adapter that the training keeps."""
    if data.validation is None:
        return "result: the last adapter, since there are no validation examples"
    metric = metric_of_best(config, data)
    if metric == "loss":
        return "result: the adapter with the lowest validation loss"
    return f"result: the adapter with the highest validation {_name(metric)}, the last one of equal ones"


def is_best(metric: str, scores: Evaluation, best: EvaluationRecord | None) -> bool:
    """Return whether an evaluation is the best so far.

    Of equal accuracies or F1 scores the later one is the best: it has learned for longer, and few examples often have
    equal scores (benchmarks/best_adapter.py). A loss that is NaN or infinite is never the best.

    Args:
        metric: metric by which the best evaluation is chosen.
        scores: scores of the evaluation.
        best: best evaluation so far; None: there is none.
    """
    if best is None or not math.isfinite(scores.loss):
        return math.isfinite(scores.loss)
    score, best_score = _score(metric, scores), _score(metric, best)
    return score > best_score or (score == best_score and metric != "loss")


def is_improvement(metric: str, scores: Evaluation, best: EvaluationRecord | None, threshold: float = 0.0) -> bool:
    """Return whether an evaluation counts as progress, so that training does not stop early.

    Its score must be better than the best one so far by more than `threshold`. If that is 0, an equal score with a
    lower loss counts too.

    Args:
        metric, scores, best: as for `is_best`.
        threshold: `early_stopping_threshold`.
    """
    if best is None or not is_best(metric, scores, best):
        return is_best(metric, scores, best)
    gain = _score(metric, scores) - _score(metric, best)
    return gain > threshold or (not threshold and scores.loss < best.loss)


def _score(metric: str, scores: Evaluation | EvaluationRecord) -> float:
    """Return the value of a metric, larger for the better of two evaluations."""
    return -scores.loss if metric == "loss" else getattr(scores, metric) or 0.0


def evaluation_record(
    scores: Evaluation, *, step: int, epoch: float, is_best: bool, seconds: float, train_loss: float | None
) -> EvaluationRecord:
    """Return the record of an evaluation; see `EvaluationRecord` for the arguments."""
    return EvaluationRecord(
        step=step,
        epoch=epoch,
        loss=scores.loss,
        perplexity=scores.perplexity,
        token_accuracy=scores.token_accuracy,
        accuracy=scores.accuracy,
        macro_f1=scores.macro_f1,
        entity_f1=scores.entity_f1,
        best=is_best,
        seconds=seconds,
        train_loss=train_loss,
        train_perplexity=None if scores.perplexity is None else perplexity_of(train_loss),
    )


def stop_reason(metric: str, evaluations: int, threshold: float) -> str:
    """Return the reason of an early stop in a few words.

    Args:
        metric: metric by which the best evaluation is chosen.
        evaluations: number of evaluations after the last one that counted as progress.
        threshold: `early_stopping_threshold`.
    """
    name, plural = _name(metric), "s" * (evaluations > 1)
    score = f"{name} better by more than {threshold:g}" if threshold else f"better {name}"
    return f"no {score} in {evaluations} evaluation{plural}"


def _name(metric: str) -> str:
    return {"macro_f1": "macro-F1", "entity_f1": "entity F1"}.get(metric, metric)
