"""The best evaluation of a run, and its record."""

import math

from peftly.data import Data
from peftly.evaluation import Evaluation, metrics_of, perplexity_of
from peftly.training.callbacks import EvaluationRecord
from peftly.training.config import TrainConfig

__all__ = ["best_line", "evaluation_record", "is_best", "is_improvement", "metric_of_best", "stop_text"]


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


def is_improvement(metric: str, scores: Evaluation, best: EvaluationRecord | None) -> bool:
    """Return whether the best evaluation so far is more than equal to the former one: a better score, or a lower loss.

    Args:
        metric, scores, best: as for `is_best`.
    """
    if best is None or not is_best(metric, scores, best):
        return is_best(metric, scores, best)
    return _score(metric, scores) > _score(metric, best) or scores.loss < best.loss


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


def stop_text(metric: str, step: int, steps: int, evaluations: int, best: EvaluationRecord | None) -> str:
    """Return a sentence on an early stop.

    Args:
        metric: metric by which the best evaluation is chosen.
        step, steps: number of updates so far, and of the whole run.
        evaluations: number of evaluations after the best one.
        best: best evaluation.
    """
    plural = "s" * (evaluations > 1)
    text = f"stopped early, after step {step} of {steps}: no better {_name(metric)} in {evaluations} evaluation{plural}"
    return text if best is None else f"{text}; the best is that of step {best.step}"


def _name(metric: str) -> str:
    return {"macro_f1": "macro-F1", "entity_f1": "entity F1"}.get(metric, metric)
