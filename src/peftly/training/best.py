"""The best evaluation of a run, and its record."""

from peftly.data import Data
from peftly.evaluation import Evaluation, perplexity_of
from peftly.training.callbacks import EvaluationRecord
from peftly.training.config import TrainConfig

__all__ = ["evaluation_record", "metric_of_best", "sort_key", "stop_text"]


def metric_of_best(config: TrainConfig, data: Data) -> str:
    """Return the metric by which the best evaluation is chosen: the configured one, or the best one for the data.

    Args:
        config: training settings.
        data: training and validation examples.
    """
    if config.metric_for_best_model != "auto":
        return config.metric_for_best_model
    return "loss"


def sort_key(metric: str, scores: Evaluation | EvaluationRecord) -> tuple[float, float]:
    """Return a key that is smaller for the better of two evaluations; the loss decides between equal scores."""
    return (scores.loss if metric == "loss" else -(getattr(scores, metric) or 0.0), scores.loss)


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
    name = {"macro_f1": "macro-F1", "entity_f1": "entity F1"}.get(metric, metric)
    plural = "s" * (evaluations > 1)
    text = f"stopped early, after step {step} of {steps}: no better {name} in {evaluations} evaluation{plural}"
    return text if best is None else f"{text}; the best is that of step {best.step}"
