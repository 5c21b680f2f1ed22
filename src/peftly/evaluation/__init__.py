"""How good a model is. May import: `inference` and what it may import.

losses          loss of every target
metrics         `Evaluation`, and the sums that it is made of
tasks           loss and scores of each task
label_scores    scores of models that write their labels
classification  scores of classifiers
entities        entities in tags
evaluate        scores on one split
ensemble        several adapters that vote
"""

from peftly.evaluation.ensemble import Vote, evaluate_ensemble, label_loss
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.losses import target_losses
from peftly.evaluation.metrics import Evaluation, metrics_of
from peftly.evaluation.tasks import scoring_for

__all__ = [
    "Evaluation",
    "Vote",
    "evaluate",
    "evaluate_ensemble",
    "label_loss",
    "metrics_of",
    "scoring_for",
    "target_losses",
]
