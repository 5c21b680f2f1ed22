"""Loss and evaluation of models. May import: `inference` and below.

losses          loss of every target
metrics         `Evaluation` and its metrics
tasks           loss and evaluation of each task
label_scores    evaluation of models that generate labels
classification  evaluation of classifiers
entities        entities in tags and their F1
evaluate        evaluation on one split
ensemble        evaluation of several adapters that vote
"""

from peftly.evaluation.ensemble import Vote, evaluate_ensemble, label_loss
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.losses import target_losses
from peftly.evaluation.metrics import Evaluation, metrics_of, perplexity_of
from peftly.evaluation.tasks import scoring_for

__all__ = [
    "Evaluation",
    "Vote",
    "evaluate",
    "evaluate_ensemble",
    "label_loss",
    "metrics_of",
    "perplexity_of",
    "scoring_for",
    "target_losses",
]
