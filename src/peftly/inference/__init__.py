"""Output of a model for new inputs. May import: `adapters` and below.

inputs          values that a caller may give for a text or a prompt
generation      completions of prompts
sampling        settings of sampling, and draws by seed
stopping        stop texts, and streams of text
classification  labels of texts and tags of words
label_scoring   probabilities of label texts
logits          logits at the positions that have a target
batches         batches for passes without gradients
predictions     predictions for rows of data
explanation     vocabulary tokens near the embeddings of a prompt
"""

from peftly.inference.batches import batches, by_length, check_adapters, on_device, pad_id, use_batch
from peftly.inference.classification import classify, tag_words
from peftly.inference.explanation import explain
from peftly.inference.generation import generate, greedy_settings
from peftly.inference.label_scoring import score_answers, score_labels
from peftly.inference.logits import (
    IGNORED,
    Logits,
    class_logits,
    decoder_logits,
    labelled_logits,
    logits_at,
    model_inputs,
    tag_logits,
    text_positions,
)
from peftly.inference.predictions import Answer, PredictionKind, Prompt, RowPredictor
from peftly.inference.stopping import completion_text

__all__ = [
    "IGNORED",
    "Answer",
    "Logits",
    "PredictionKind",
    "Prompt",
    "RowPredictor",
    "batches",
    "by_length",
    "check_adapters",
    "class_logits",
    "classify",
    "completion_text",
    "decoder_logits",
    "explain",
    "generate",
    "greedy_settings",
    "labelled_logits",
    "logits_at",
    "model_inputs",
    "on_device",
    "pad_id",
    "score_answers",
    "score_labels",
    "tag_logits",
    "tag_words",
    "text_positions",
    "use_batch",
]
