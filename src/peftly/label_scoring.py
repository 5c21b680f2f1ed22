"""How good a model is on held-out rows: loss, perplexity, token accuracy, and for labelled rows the likeliest label.

A label's score is the log-probability of its whole text, end token included, so that nothing has to be generated and
no label is favoured for being a prefix of another. Each prompt goes through the model once, whatever the number of
labels: their tokens are scored from its cache. Rows are taken in order of length, so that little is padding.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftly.data import Encoded, Shape, Split, collate, label_ids
from peftly.errors import DataError
from peftly.modes import evaluation_mode
from peftly.objective import labelled_logits, row_logits, row_losses, text_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Evaluation", "Prediction", "evaluate", "score_labels"]

_BRANCHES = 128
"""Rows of one pass over label tokens: every one holds a copy of its prompt's cache."""


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one labelled row.

    Attributes:
        prompt: the text that the label follows.
        label: the row's own label.
        predicted: the likeliest label.
        log_probabilities: of every label's text, by label.
    """

    prompt: str
    label: str
    predicted: str
    log_probabilities: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    Attributes:
        rows: how many rows were read.
        tokens: how many trained tokens (completion and end) the scores are over.
        loss: mean of -log p over those tokens.
        perplexity: exp(loss).
        token_accuracy: share of those tokens that the model would have chosen itself.
        accuracy: share of rows whose own label is the likeliest; None without labels, like all that follows.
        macro_f1: F1 averaged over the labels that occur as a row's own or as a prediction.
        labels: the label texts, in order.
        confusion: how often label i (outer) was taken for label j (inner).
        predictions: one a row, in the order of the split.
    """

    rows: int
    tokens: int
    loss: float
    perplexity: float
    token_accuracy: float
    accuracy: float | None = None
    macro_f1: float | None = None
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    predictions: tuple[Prediction, ...] = ()


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    shape: Shape,
    *,
    batch_size: int = 32,
) -> Evaluation:
    """Score `model` on a split; the model is left as it was found.

    Args:
        model: a causal language model, adapted or not.
        tokenizer: the model's own.
        split: rows that hold at least one trained token each.
        shape: how the rows became text; one of kind "label" adds the scores over labels.
        batch_size: rows that go through the model at once.

    Raises:
        DataError: the split is empty, or a row's label is none of the shape's.
    """
    if not split.encoded:
        raise DataError("there is nothing to evaluate: the split has no rows")
    with evaluation_mode(model):
        if shape.kind == "label":
            return _evaluate_labels(model, tokenizer, split, shape, batch_size)
        return _evaluate_tokens(model, tokenizer, split, batch_size)


def _evaluate_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, batch_size: int
) -> Evaluation:
    loss, hits, tokens = 0.0, 0, 0
    for chosen in _by_length([len(encoded.input_ids) for encoded in split.encoded], batch_size):
        batch = collate([split.encoded[index] for index in chosen], pad_id=_pad_id(tokenizer))
        logits, targets = labelled_logits(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
        loss += row_losses(logits, targets).double().sum().item()
        hits += int((logits.argmax(-1) == targets.to(logits.device)).sum())
        tokens += targets.numel()
    return Evaluation(rows=len(split.encoded), tokens=tokens, **_token_scores(loss, hits, tokens))


def _evaluate_labels(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    by_label = label_ids(shape, tokenizer)
    labels, texts = tuple(by_label), list(by_label.values())
    golds = [_place(labels, example.label) for example in split.examples]
    prompts = [_prompt_ids(encoded) for encoded in split.encoded]
    scores, hits = torch.zeros(len(prompts), len(labels), dtype=torch.double), torch.zeros(len(prompts), len(labels))
    for chosen in _by_length([len(prompt) for prompt in prompts], batch_size):
        scores[chosen], hits[chosen] = score_labels(
            model, [prompts[index] for index in chosen], texts, pad_id=_pad_id(tokenizer)
        )
    # What the loss would be on the rows as they are, since a row's completion is its label's text.
    rows = torch.arange(len(golds))
    tokens = sum(len(texts[gold]) for gold in golds)
    taken = scores.argmax(1).tolist()
    return Evaluation(
        rows=len(golds),
        tokens=tokens,
        **_token_scores(-scores[rows, golds].sum().item(), int(hits[rows, golds].sum()), tokens),
        **_label_scores(golds, taken, len(labels)),
        labels=labels,
        predictions=tuple(
            Prediction(example.prompt, labels[gold], labels[guess], dict(zip(labels, row, strict=True)))
            for example, gold, guess, row in zip(split.examples, golds, taken, scores.tolist(), strict=True)
        ),
    )


def score_labels(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every label after every prompt, and how many of its tokens the model would choose.

    Call it without gradients, in evaluation mode.

    Args:
        model: a causal language model with a cache.
        prompts: token ids, at least one each.
        labels: token ids of each label's text, at least one each.
        pad_id: what fills the places before a short prompt and after a short label.

    Returns:
        Two tensors (prompts, labels) on the CPU, the first in fp64.
    """
    ids, mask = _padded(prompts, pad_id, left=True, device=model.device)
    last = torch.arange(1, len(prompts) + 1, device=ids.device) * ids.shape[1] - 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": text_positions(mask)}
    logits, output = row_logits(model, last, inputs, use_cache=True, past_key_values=_empty_cache(model))
    firsts = torch.tensor([label[0] for label in labels], device=logits.device)
    log_sums = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1, keepdim=True)
    scores = (logits[:, firsts] - log_sums).double().cpu()
    hits = (logits.argmax(-1, keepdim=True) == firsts).float().cpu()
    longer = [place for place, label in enumerate(labels) if len(label) > 1]
    size = max(1, _BRANCHES // len(prompts))
    for start in range(0, len(longer), size):
        group = longer[start : start + size]
        cache = output.past_key_values
        if start + size < len(longer):
            cache = copy.deepcopy(cache)
        more, chosen = _continue(model, mask, cache, [labels[place] for place in group], pad_id)
        scores[:, group] += more
        hits[:, group] += chosen
    return scores, hits


def _continue(
    model: "PreTrainedModel", prompt_mask: Tensor, cache: Any, labels: list[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return what `score_labels` does for the tokens after the first; uses up the cache of the prompts."""
    prompts, device = len(prompt_mask), prompt_mask.device
    branch = torch.arange(prompts, device=device).repeat_interleave(len(labels))
    cache.reorder_cache(branch)
    if getattr(cache, "slots", None) is not None:
        # Where the virtual tokens stand in each row: they belong to the rows, so they go where those go.
        cache.slots = cache.slots.select(branch)
    ids, real = _padded([label[:-1] for label in labels] * prompts, pad_id, left=False, device=device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt_mask[branch], real], dim=1),
        "position_ids": prompt_mask.sum(1)[branch, None] + torch.arange(ids.shape[1], device=device),
    }
    rows = real.flatten().nonzero().squeeze(1)
    targets = torch.tensor([token for label in labels for token in label[1:]] * prompts, device=device)
    logits, _ = row_logits(model, rows, inputs, use_cache=True, past_key_values=cache)
    owner = (rows // ids.shape[1]).cpu()
    chosen = (logits.argmax(-1) == targets.to(logits.device)).double().cpu()
    sums = torch.zeros(2, len(branch), dtype=torch.double)
    sums[0].index_add_(0, owner, -row_losses(logits, targets).double().cpu())
    sums[1].index_add_(0, owner, chosen)
    scores, hits = sums.view(2, prompts, len(labels))
    return scores, hits


def _empty_cache(model: "PreTrainedModel") -> Any:
    """Return what `generate` starts from, so that an adapter that fills an empty cache does so here too."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    encoded = [Encoded(input_ids=list(row), trained=[False] * len(row), cut=0) for row in rows]
    batch = collate(encoded, pad_id=pad_id, side="left" if left else "right")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices, the longest first: whatever does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _prompt_ids(encoded: Encoded) -> list[int]:
    return encoded.input_ids[: encoded.trained.index(True)]


def _place(labels: Sequence[str], label: str | None) -> int:
    if label is None or label not in labels:
        raise DataError(f"a row has the label {label!r}; the labels are {', '.join(map(repr, labels))}")
    return labels.index(label)


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    # Any id does: padded places are masked by length.
    return int(tokenizer.pad_token_id or 0)


def _token_scores(loss: float, hits: int, tokens: int) -> dict[str, Any]:
    mean = loss / tokens
    # Beyond this a float overflows; NaN stays NaN.
    perplexity = math.inf if mean > 700 else math.exp(mean)
    return {"loss": mean, "perplexity": perplexity, "token_accuracy": hits / tokens}


def _label_scores(golds: list[int], taken: list[int], labels: int) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, f1_score

    confusion = confusion_matrix(golds, taken, labels=list(range(labels)))
    return {
        "accuracy": sum(gold == guess for gold, guess in zip(golds, taken, strict=True)) / len(golds),
        "macro_f1": float(f1_score(golds, taken, average="macro", zero_division=0)),
        "confusion": tuple(tuple(int(count) for count in row) for row in confusion),
    }
