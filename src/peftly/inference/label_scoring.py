"""Exact log-probabilities of label texts after a prompt, for language models.

The score of a label is the log-probability of its whole text with the end token, so a label that is a prefix of another
label has no advantage. Each prompt goes through the model once, whatever the number of labels: the tokens of the labels
are scored from its key-value cache.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from peftly.data import EncodedExample, collate
from peftly.inference.batches import on_device
from peftly.inference.logits import IGNORED, logits_at, text_positions
from peftly.injection import reorder_cache_insertions
from peftly.kernels import token_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["score_answers", "score_labels"]

_BRANCHES = 128
"""Maximum batch size of a pass over label tokens. Every batch element holds a copy of its prompt's cache."""


def score_labels(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every label after every prompt, and the number of tokens that are a greedy choice.

    Call this function without gradients, in evaluation mode.

    Args:
        model: causal language model with a key-value cache.
        prompts: token ids of each prompt, at least one.
        labels: token ids of each label's text, at least one.
        pad_id: padding id.

    Returns:
        Two tensors (prompts, labels) on the CPU: log-probabilities in fp64, and the number of tokens of each label that
        are the most likely token at their position.
    """
    ids, mask = _padded(prompts, pad_id, left=True, device=model.device)
    last = torch.arange(1, len(prompts) + 1, device=ids.device) * ids.shape[1] - 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": text_positions(mask)}
    logits, output = logits_at(model, last, inputs, use_cache=True, past_key_values=_empty_cache(model))
    first_tokens = torch.tensor([label[0] for label in labels], device=logits.device)
    log_sums = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1, keepdim=True)
    scores = (logits[:, first_tokens] - log_sums).double().cpu()
    hits = (logits.argmax(-1, keepdim=True) == first_tokens).float().cpu()
    longer = [index for index, label in enumerate(labels) if len(label) > 1]
    size = max(1, _BRANCHES // len(prompts))
    for start in range(0, len(longer), size):
        group = longer[start : start + size]
        cache = output.past_key_values
        if start + size < len(longer):
            cache = copy.deepcopy(cache)
        group_scores, group_hits = _score_from_cache(model, mask, cache, [labels[index] for index in group], pad_id)
        scores[:, group] += group_scores
        hits[:, group] += group_hits
    return scores, hits


def score_answers(
    model: "PreTrainedModel", prompts: Sequence[EncodedExample], labels: Sequence[Sequence[int]], *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Score labels as `score_labels` does, for an encoder-decoder. The encoder reads each prompt once.

    Call this function without gradients, in evaluation mode.

    Args:
        model: encoder-decoder language model.
        prompts: encoded inputs of the encoder.
        labels: token ids that the decoder generates for each label, with the end token.
        pad_id: padding id.

    Returns:
        Two tensors (prompts, labels) on the CPU: log-probabilities in fp64, and the number of tokens of each label that
        are the most likely token at their position.
    """
    batch = on_device(collate(prompts, pad_id=pad_id), model)
    hidden = cast(Any, model).get_encoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
    )
    sums = torch.zeros(2, len(prompts), len(labels), dtype=torch.double)
    size = max(1, _BRANCHES // len(prompts))
    for start in range(0, len(labels), size):
        group = list(labels[start : start + size])
        sums[:, :, start : start + size] = _score_by_decoder(model, hidden, batch["attention_mask"], group)
    return sums[0], sums[1].float()


def _score_by_decoder(model: "PreTrainedModel", hidden: Any, mask: Tensor, labels: list[Sequence[int]]) -> Tensor:
    """Return log-probabilities and numbers of greedy tokens of every label after every prompt, (2, prompts, labels).

    Args:
        model: encoder-decoder language model.
        hidden: output of the encoder for the prompts.
        mask: attention mask of the prompts, (prompts, length).
        labels: token ids of each label.
    """
    prompts = len(mask)
    prompt_of = torch.arange(prompts, device=mask.device).repeat_interleave(len(labels))
    width = max(map(len, labels))
    targets = torch.tensor([[*label, *[IGNORED] * (width - len(label))] for label in labels] * prompts)
    targets = targets.to(mask.device)
    positions = targets.flatten().ne(IGNORED).nonzero().squeeze(1)
    inputs = {
        "encoder_outputs": type(hidden)(last_hidden_state=hidden.last_hidden_state[prompt_of]),
        "attention_mask": mask[prompt_of],
        "decoder_input_ids": cast(Any, model).prepare_decoder_input_ids_from_labels(targets),
    }
    logits, _ = logits_at(model, positions, inputs, use_cache=False)
    wanted, branch_of = targets.flatten()[positions], (positions // width).cpu()
    sums = torch.zeros(2, len(prompt_of), dtype=torch.double)
    sums[0].index_add_(0, branch_of, -token_cross_entropy(logits, wanted).double().cpu())
    sums[1].index_add_(0, branch_of, (logits.argmax(-1) == wanted.to(logits.device)).double().cpu())
    return sums.view(2, prompts, len(labels))


def _score_from_cache(
    model: "PreTrainedModel", prompt_mask: Tensor, cache: Any, labels: list[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return scores and hits of every label's tokens after the first, (prompts, labels) each.

    Args:
        model: causal language model.
        prompt_mask: attention mask of the prompts, (prompts, length).
        cache: key-value cache of the prompts, which is changed.
        labels: token ids of each label, at least two.
        pad_id: padding id.
    """
    prompts, device = len(prompt_mask), prompt_mask.device
    prompt_of = torch.arange(prompts, device=device).repeat_interleave(len(labels))
    cache.reorder_cache(prompt_of)
    reorder_cache_insertions(cache, prompt_of)
    ids, label_mask = _padded([label[:-1] for label in labels] * prompts, pad_id, left=False, device=device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt_mask[prompt_of], label_mask], dim=1),
        "position_ids": prompt_mask.sum(1)[prompt_of, None] + torch.arange(ids.shape[1], device=device),
    }
    positions = label_mask.flatten().nonzero().squeeze(1)
    targets = torch.tensor([token for label in labels for token in label[1:]] * prompts, device=device)
    logits, _ = logits_at(model, positions, inputs, use_cache=True, past_key_values=cache)
    branch_of = (positions // ids.shape[1]).cpu()
    is_greedy = (logits.argmax(-1) == targets.to(logits.device)).double().cpu()
    sums = torch.zeros(2, len(prompt_of), dtype=torch.double)
    sums[0].index_add_(0, branch_of, -token_cross_entropy(logits, targets).double().cpu())
    sums[1].index_add_(0, branch_of, is_greedy)
    scores, hits = sums.view(2, prompts, len(labels))
    return scores, hits


def _empty_cache(model: "PreTrainedModel") -> Any:
    """Return an empty cache of the class that `generate` uses, so that prefix adapters fill it here too."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _padded(texts: Sequence[Sequence[int]], pad_id: int, *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return padded token ids and their attention mask, (texts, length) each."""
    encoded = [EncodedExample(input_ids=list(ids), trained=[False] * len(ids), num_truncated=0) for ids in texts]
    batch = collate(encoded, pad_id=pad_id, side="left" if left else "right")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)
