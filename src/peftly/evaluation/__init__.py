"""Loss and evaluation of models. May import: `inference` and below.

losses          loss of every target
metrics         `Evaluation` and its metrics
tasks           loss and evaluation of each task
label_scores    evaluation of models that generate labels
classification  evaluation of classifiers
entities        entities in tags and their F1
generation      answers that a model generates
text_scores     scores of generated answers
evaluate        evaluation on one split
ensemble        evaluation of several adapters that vote
"""

from peftly.evaluation.ensemble import Vote, evaluate_ensemble, label_loss
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.generation import check_answers, has_answers
from peftly.evaluation.losses import target_losses
from peftly.evaluation.metrics import Evaluation, Prediction, metrics_of, perplexity_of
from peftly.evaluation.tasks import scoring_for
from peftly.evaluation.text_scores import missing_scores

__all__ = [
    "Evaluation",
    "Prediction",
    "Vote",
    "check_answers",
    "evaluate",
    "evaluate_ensemble",
    "has_answers",
    "label_loss",
    "metrics_of",
    "missing_scores",
    "perplexity_of",
    "scoring_for",
    "target_losses",
]
