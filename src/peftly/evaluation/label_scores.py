"""Scores of language models that write the label of a text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.data import EncodedExample, RowFormat, Split, label_answers, label_ids
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions, place
from peftly.inference import batches, pad_id, score_answers, score_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate_answers", "evaluate_labels"]


def evaluate_labels(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Score a causal language model by the labels that it finds likeliest."""
    by_label = label_ids(row_format, tokenizer)
    texts = list(by_label.values())
    prompts = [_prompt_ids(encoded) for encoded in split.encoded]

    def score(chosen: list[int]) -> tuple[Tensor, Tensor]:
        return score_labels(model, [prompts[index] for index in chosen], texts, pad_id=pad_id(tokenizer))

    return _evaluated(model, split, by_label, [len(prompt) for prompt in prompts], batch_size, score)


def evaluate_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Score an encoder-decoder by the labels that it finds likeliest."""
    by_label = label_answers(row_format, tokenizer)
    texts = list(by_label.values())

    def score(chosen: list[int]) -> tuple[Tensor, Tensor]:
        return score_answers(model, [split.encoded[index] for index in chosen], texts, pad_id=pad_id(tokenizer))

    return _evaluated(model, split, by_label, [len(row.input_ids) for row in split.encoded], batch_size, score)


def _evaluated(
    model: "PreTrainedModel",
    split: Split,
    by_label: dict[str, list[int]],
    lengths: Sequence[int],
    batch_size: int,
    score: Callable[[list[int]], tuple[Tensor, Tensor]],
) -> Evaluation:
    """Return the evaluation of a split, of whose rows `score` gives what `score_labels` does."""
    labels, texts = tuple(by_label), list(by_label.values())
    golds = [place(labels, example.label) for example in split.examples]
    scores, hits = torch.zeros(len(golds), len(labels), dtype=torch.double), torch.zeros(len(golds), len(labels))
    for chosen in batches(model, split, lengths, batch_size):
        scores[chosen], hits[chosen] = score(chosen)
    taken = scores.argmax(1).tolist()
    rows = zip(split.examples, golds, taken, scores.tolist(), hits.int().tolist(), strict=True)
    return evaluate_predictions(
        [
            Prediction(
                example.prompt,
                labels[gold],
                labels[guess],
                dict(zip(labels, row, strict=True)),
                tokens=len(texts[gold]),
                hits=right[gold],
            )
            for example, gold, guess, row, right in rows
        ],
        labels,
    )


def _prompt_ids(encoded: EncodedExample) -> list[int]:
    return encoded.input_ids[: encoded.trained.index(True)]
