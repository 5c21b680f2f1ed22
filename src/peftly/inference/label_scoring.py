"""The likeliest label of a row, for models that write: the exact probability of every label's text.

A label's score is the log-probability of its whole text, end token included, so that nothing has to be generated and
no label is favoured for being a prefix of another. Each prompt goes through the model once, whatever the number of
labels: their tokens are scored from its cache. Rows are taken in order of length, so that little is padding.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from peftly.data import EncodedExample, collate
from peftly.inference.batches import on_device
from peftly.inference.logits import IGNORED, row_logits, text_positions
from peftly.injection import select_cached_rows
from peftly.kernels import row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["score_answers", "score_labels"]

_BRANCHES = 128
"""Rows of one pass over label tokens: every one holds a copy of its prompt's cache."""


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
    model: "PreTrainedModel", prompts: Sequence[EncodedExample], labels: Sequence[Sequence[int]], *, pad_id: int
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
    encoded = [EncodedExample(input_ids=list(row), trained=[False] * len(row), cut=0) for row in rows]
    batch = collate(encoded, pad_id=pad_id, side="left" if left else "right")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)
