"""Answers of a model. May import: `adapters` and what it may import.

generation      text
classification  labels of texts and tags of tokens
label_scoring   probabilities of given answers
logits          logits at the positions that have a target
batches         batches for passes without gradients
explanation     vocabulary tokens near a learned prompt
"""

from peftly.inference.batches import batches, on_device, pad_id
from peftly.inference.classification import classify, tag_words
from peftly.inference.explanation import explain
from peftly.inference.generation import generate, greedy_settings
from peftly.inference.label_scoring import score_answers, score_labels
from peftly.inference.logits import IGNORED, Logits, class_logits, decoder_logits, labelled_logits, read_by, tag_logits

__all__ = [
    "IGNORED",
    "Logits",
    "batches",
    "class_logits",
    "classify",
    "decoder_logits",
    "explain",
    "generate",
    "greedy_settings",
    "labelled_logits",
    "on_device",
    "pad_id",
    "read_by",
    "score_answers",
    "score_labels",
    "tag_logits",
    "tag_words",
]
