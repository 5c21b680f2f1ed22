"""Evaluation of language models that generate the label of a text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.data import EncodedExample, RowFormat, Split, input_lengths, label_answers, label_ids
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions, label_index
from peftly.inference import batches, pad_id, score_answers, score_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate_answers", "evaluate_labels"]


def evaluate_labels(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate a causal language model on its most likely labels.

    Args:
        model: causal language model, in evaluation mode.
        tokenizer: tokenizer of the model.
        split: encoded examples with labels.
        row_format: format of the examples.
        batch_size: number of examples per forward pass.
    """
    label_tokens = label_ids(row_format, tokenizer)
    texts = list(label_tokens.values())
    prompts = [_prompt_tokens(encoded) for encoded in split.encoded]

    def score(chosen: list[int]) -> tuple[Tensor, Tensor]:
        return score_labels(model, [prompts[index] for index in chosen], texts, pad_id=pad_id(tokenizer))

    return _evaluate(model, split, label_tokens, [len(prompt) for prompt in prompts], batch_size, score)


def evaluate_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate an encoder-decoder on its most likely labels.

    Args:
        model: encoder-decoder language model, in evaluation mode.
        tokenizer: tokenizer of the model.
        split: encoded examples with labels.
        row_format: format of the examples.
        batch_size: number of examples per forward pass.
    """
    label_tokens = label_answers(row_format, tokenizer)
    texts = list(label_tokens.values())

    def score(chosen: list[int]) -> tuple[Tensor, Tensor]:
        return score_answers(model, [split.encoded[index] for index in chosen], texts, pad_id=pad_id(tokenizer))

    return _evaluate(model, split, label_tokens, input_lengths(split.encoded), batch_size, score)


def _evaluate(
    model: "PreTrainedModel",
    split: Split,
    label_tokens: dict[str, list[int]],
    lengths: Sequence[int],
    batch_size: int,
    score: Callable[[list[int]], tuple[Tensor, Tensor]],
) -> Evaluation:
    """Evaluate a model on a split with labels.

    Args:
        model: language model.
        split: encoded examples with labels.
        label_tokens: token ids of each label's text, by label.
        lengths: number of tokens of each example, by which batches are formed.
        batch_size: number of examples per forward pass.
        score: function that returns log-probabilities and hits of every label for the examples with given indices, as
            `score_labels` does.
    """
    labels, texts = tuple(label_tokens), list(label_tokens.values())
    true = [label_index(labels, example.label) for example in split.examples]
    scores, hits = torch.zeros(len(true), len(labels), dtype=torch.double), torch.zeros(len(true), len(labels))
    for chosen in batches(model, split, lengths, batch_size):
        scores[chosen], hits[chosen] = score(chosen)
    predicted = scores.argmax(1).tolist()
    results = zip(split.examples, true, predicted, scores.tolist(), hits.int().tolist(), strict=True)
    return evaluate_predictions(
        [
            Prediction(
                example.prompt,
                labels[gold],
                labels[guess],
                dict(zip(labels, values, strict=True)),
                tokens=len(texts[gold]),
                hits=label_hits[gold],
            )
            for example, gold, guess, values, label_hits in results
        ],
        labels,
    )


def _prompt_tokens(encoded: EncodedExample) -> list[int]:
    """Return the tokens of an example in front of its label."""
    return encoded.input_ids[: encoded.trained.index(True)]
