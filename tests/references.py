"""What an adapted model should compute, written out plainly on an unadapted copy of the base."""

import copy
from collections.abc import Callable

import torch
from tiny import perturb, tiny_model
from torch import Tensor

from peftly import LoRA, PromptTuning, attach, detach, merge, trainable_parameters
from peftly.adapt import attached

Logits = Callable[[Tensor], Tensor]


def adapted(architecture: str, method: str, dtype: torch.dtype = torch.float64, **settings):
    """An adapted tiny model whose weights were moved, and the logits it should give for one unpadded row."""
    model = tiny_model(architecture, dtype)
    config = {"prompt_tuning": PromptTuning, "lora": LoRA}[method](**DEFAULTS[method] | settings)
    attach(model, config)
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)  # fp32 masters would limit what float64 can show
    return model, {"prompt_tuning": prompted, "lora": with_delta}[method](model)


DEFAULTS = {"prompt_tuning": {"num_virtual_tokens": 4, "init": "random"}, "lora": {"rank": 4}}
METHODS = tuple(DEFAULTS)


def prompted(model, name="default") -> Logits:
    """Trained rows in front of the word embeddings, through `inputs_embeds`."""
    rows = attached(model)[name].parameters()["prompt_embeddings"].detach().clone()
    base = detach(copy.deepcopy(model))

    def logits(ids: Tensor) -> Tensor:
        words = base.get_input_embeddings()(ids)
        embeds = torch.cat([rows.to(words.dtype).expand(ids.shape[0], -1, -1), words], 1)
        return base(inputs_embeds=embeds, use_cache=False).logits[:, rows.shape[0] :]

    return logits


def with_delta(model) -> Logits:
    """The update added into the weights."""
    merged = merge(copy.deepcopy(model))
    return lambda ids: merged(ids, use_cache=False).logits
