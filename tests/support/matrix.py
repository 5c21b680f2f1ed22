"""Batches and comparisons for the matrix of methods, tasks and architectures."""

import torch
from tiny import LABELS, padded, random_rows

from peftly import (
    trainable_parameters,
    use_adapters,
)

TEXTS = random_rows([5, 14, 9, 7])


ANSWERS = random_rows([3, 6, 2, 4], seed=1)


def batch_of(task, rows, side="right"):
    """The inputs of some rows, and a function from their logits to the loss of each."""
    ids, mask = padded([TEXTS[row] for row in rows], side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task == "seq2seq_lm":
        answers, real = padded([ANSWERS[row] for row in rows], "right")
        inputs |= {"decoder_input_ids": torch.cat([torch.full_like(answers[:, :1], 2), answers[:, :-1]], 1)}
        return inputs, lambda logits: _token_losses(logits, answers, real)
    if task == "sequence_classification":
        labels = torch.tensor([row % LABELS for row in rows])
        return inputs, lambda logits: torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if task == "token_classification":
        return inputs, lambda logits: _token_losses(logits, ids % LABELS, mask)
    following, real = torch.roll(ids, -1, 1), mask * torch.roll(mask, -1, 1)
    real[:, -1] = 0
    return inputs, lambda logits: _token_losses(logits, following, real)


def _token_losses(logits, targets, real):
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (losses * real).sum(1)


def losses_and_gradients(model, task, rows, side="right"):
    inputs, losses_of = batch_of(task, rows, side)
    losses = losses_of(model(**inputs).logits)
    parameters = list(trainable_parameters(model).values())
    total = losses.sum() + sum(0 * parameter.sum() for parameter in parameters)
    gradients = torch.autograd.grad(total, parameters)
    return losses.detach(), dict(zip(trainable_parameters(model), gradients, strict=True))


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def changes_the_logits(model, task):
    inputs, _ = batch_of(task, [0, 1, 2])
    with torch.no_grad():
        adapted = model(**inputs).logits
        with use_adapters(model):
            plain = model(**inputs).logits
    assert (adapted - plain).norm() > 1e-3 * plain.norm()
