"""Losses and gradients of a model, and bounds on their differences."""

import torch

from peftly import trainable_parameters


def tolerance(model) -> float:
    """Return the largest relative difference of logits and losses."""
    return 1e-10 if model.dtype == torch.float64 else 2e-5


def gradient_tolerance(model) -> float:
    """Return the largest relative difference of gradients; Gemma sums those of its normalisations in fp32."""
    in_fp32 = any("norm" in name for name in trainable_parameters(model)) and "gemma" in model.config.model_type
    return 1e-6 if in_fp32 else 10 * tolerance(model)


def loss_and_gradients(model, ids, mask=None, **kwargs):
    """Return the summed -log p of every token but the first of each text, the logits and the gradients of the sum."""
    logits = model(ids, attention_mask=mask, **kwargs).logits
    mask = torch.ones_like(ids) if mask is None else mask
    counted = (mask[:, 1:] * mask[:, :-1]).bool()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted], reduction="sum")
    parameters = list(trainable_parameters(model).values())
    loss = loss + sum(0 * parameter.sum() for parameter in parameters)  # a text may have no adapter
    gradients = torch.autograd.grad(loss, parameters)
    return loss, logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])
