"""The likeliest label of a row, for models that write: the exact probability of every label's text.

A label's score is the log-probability of its whole text, end token included, so that nothing has to be generated and
no label is favoured for being a prefix of another. Each prompt goes through the model once, whatever the number of
labels: their tokens are scored from its cache. Rows are taken in order of length, so that little is padding.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from peftly.data import Encoded, Shape, Split, collate, label_ids
from peftly.data.task_encoding import label_answers
from peftly.methods._slots import select_cached_rows
from peftly.objective import IGNORED, row_logits, row_losses, text_positions
from peftly.scores import Evaluation, Prediction, batches, evaluate_predictions, on_device, pad_id, place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate_answers", "evaluate_labels", "score_answers", "score_labels"]

_BRANCHES = 128
"""Rows of one pass over label tokens: every one holds a copy of its prompt's cache."""


def evaluate_labels(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    """Score a causal language model by the labels that it finds likeliest."""
    by_label = label_ids(shape, tokenizer)
    texts = list(by_label.values())
    prompts = [_prompt_ids(encoded) for encoded in split.encoded]

    def score(chosen: list[int]) -> tuple[Tensor, Tensor]:
        return score_labels(model, [prompts[index] for index in chosen], texts, pad_id=pad_id(tokenizer))

    return _evaluated(model, split, by_label, [len(prompt) for prompt in prompts], batch_size, score)


def evaluate_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    """Score an encoder-decoder by the labels that it finds likeliest."""
    by_label = label_answers(shape, tokenizer)
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


def score_answers(
    model: "PreTrainedModel", prompts: Sequence[Encoded], labels: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return what `score_labels` does, for an encoder-decoder: the encoder reads each prompt once.

    Call it without gradients, in evaluation mode.

    Args:
        model: an encoder-decoder language model.
        prompts: what the encoder reads.
        labels: the tokens that the decoder is to write for each label, with the end token.
        pad_id: what fills up a batch.
    """
    batch = on_device(collate(prompts, pad_id=pad_id), model)
    hidden = cast(Any, model).get_encoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
    )
    sums = torch.zeros(2, len(prompts), len(labels), dtype=torch.double)
    size = max(1, _BRANCHES // len(prompts))
    for start in range(0, len(labels), size):
        group = list(labels[start : start + size])
        sums[:, :, start : start + size] = _decoded(model, hidden, batch["attention_mask"], group)
    return sums[0], sums[1].float()


def _decoded(model: "PreTrainedModel", hidden: Any, mask: Tensor, labels: list[Sequence[int]]) -> Tensor:
    """Return log-probabilities and numbers of chosen tokens of every label after every prompt, (2, prompts, labels)."""
    prompts = len(mask)
    branch = torch.arange(prompts, device=mask.device).repeat_interleave(len(labels))
    width = max(map(len, labels))
    targets = torch.tensor([[*label, *[IGNORED] * (width - len(label))] for label in labels] * prompts)
    targets = targets.to(mask.device)
    rows = targets.flatten().ne(IGNORED).nonzero().squeeze(1)
    inputs = {
        "encoder_outputs": type(hidden)(last_hidden_state=hidden.last_hidden_state[branch]),
        "attention_mask": mask[branch],
        "decoder_input_ids": cast(Any, model).prepare_decoder_input_ids_from_labels(targets),
    }
    logits, _ = row_logits(model, rows, inputs, use_cache=False)
    wanted, owner = targets.flatten()[rows], (rows // width).cpu()
    sums = torch.zeros(2, len(branch), dtype=torch.double)
    sums[0].index_add_(0, owner, -row_losses(logits, wanted).double().cpu())
    sums[1].index_add_(0, owner, (logits.argmax(-1) == wanted.to(logits.device)).double().cpu())
    return sums.view(2, prompts, len(labels))


def _continue(
    model: "PreTrainedModel", prompt_mask: Tensor, cache: Any, labels: list[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return what `score_labels` does for the tokens after the first; uses up the cache of the prompts."""
    prompts, device = len(prompt_mask), prompt_mask.device
    branch = torch.arange(prompts, device=device).repeat_interleave(len(labels))
    cache.reorder_cache(branch)
    select_cached_rows(cache, branch)
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


def _prompt_ids(encoded: Encoded) -> list[int]:
    return encoded.input_ids[: encoded.trained.index(True)]
