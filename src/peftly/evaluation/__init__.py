"""Loss and evaluation of models. May import: `inference` and below.

losses          loss of every target
metrics         `Evaluation` and its metrics
tasks           loss and evaluation of each task
label_scores    evaluation of models that generate labels
classification  evaluation of classifiers
entities        entities in tags and their F1
generation      answers that a model generates
text_scores     scores of generated answers
rows            rows in memory or in a file as examples of a model
evaluate        evaluation on one split
predicted       scores of predictions for rows that have targets
ensemble        evaluation of several adapters that vote
states          states of a frozen base that the heads of classifiers read
logistic        logistic regression, with its strength by cross-validation
probe           linear probes: logistic regression on these states
"""

from peftly.evaluation.ensemble import Vote, evaluate_ensemble, label_loss, vote_on
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.generation import check_answers, has_answers
from peftly.evaluation.losses import target_losses
from peftly.evaluation.metrics import Evaluation, Prediction, metrics_of, perplexity_of
from peftly.evaluation.predicted import prediction_scores
from peftly.evaluation.probe import Probe, choose_probe, evaluate_label_probe, evaluate_probe, fit_probes
from peftly.evaluation.rows import data_of
from peftly.evaluation.states import HeadName
from peftly.evaluation.tasks import check_lengths, scoring_for
from peftly.evaluation.text_scores import missing_scores

__all__ = [
    "Evaluation",
    "HeadName",
    "Prediction",
    "Probe",
    "Vote",
    "check_answers",
    "check_lengths",
    "choose_probe",
    "data_of",
    "evaluate",
    "evaluate_ensemble",
    "evaluate_label_probe",
    "evaluate_probe",
    "fit_probes",
    "has_answers",
    "label_loss",
    "metrics_of",
    "missing_scores",
    "perplexity_of",
    "prediction_scores",
    "scoring_for",
    "target_losses",
    "vote_on",
]
