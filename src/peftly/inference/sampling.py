"""Sampling of tokens: settings, logits processors, and draws that depend on a prompt and a seed only."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from peftly.errors import ConfigError

__all__ = ["Sampling", "prompt_generators", "sampling_processors", "sampling_settings"]


class Sampling(NamedTuple):
    """Settings of sampling, as in transformers.

    Attributes:
        temperature: divisor of the logits, above 0.
        top_k: number of most likely tokens to draw from; None: no limit.
        top_p: draw from the most likely tokens whose probabilities add up to this value, within (0, 1].
        min_p: draw from tokens with at least this fraction of the highest probability, within [0, 1]; None: no limit.
    """

    temperature: float
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None


def sampling_settings(
    *, do_sample: bool | None, temperature: float | None, top_k: int | None, top_p: float, min_p: float | None
) -> Sampling | None:
    """Return the settings of sampling; None for a search without draws (greedy or beams).

    Raises:
        ConfigError: a value is out of range, or has no effect together with the others.
    """
    if temperature is None:
        temperature = 1.0 if do_sample else 0.0
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature must be at least 0 and finite, and top_p within (0, 1]; got temperature={temperature} and "
            f"top_p={top_p}"
        )
    if (top_k is not None and top_k < 1) or (min_p is not None and not 0 <= min_p <= 1):
        raise ConfigError(f"top_k must be at least 1 and min_p within [0, 1]; got top_k={top_k} and min_p={min_p}")
    if do_sample and temperature == 0:
        raise ConfigError("do_sample=True draws tokens, which needs a temperature above 0; got temperature=0")
    if do_sample is False and temperature > 0:
        raise ConfigError(f"temperature={temperature} has no effect with do_sample=False; leave one of the two out")
    if temperature > 0:
        return Sampling(temperature, top_k, top_p, min_p)
    limits = {"top_k": top_k, "top_p": None if top_p == 1 else top_p, "min_p": min_p}
    for name, value in limits.items():
        if value is not None:
            raise ConfigError(
                f"{name}={value} has no effect at temperature 0; give a temperature above 0, or leave it out"
            )
    return None


def sampling_processors(sampling: Sampling, generators: Sequence[torch.Generator]) -> LogitsProcessorList:
    """Return logits processors that make the greedy choice of `generate` a draw.

    Args:
        sampling: settings of sampling.
        generators: random generator of each batch element.
    """
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(float(sampling.min_p)))
    processors.append(_GumbelNoise(generators))
    return processors


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to the logits: the index of the maximum is then distributed as softmax(logits).

    Each batch element has its own generator, so its draw does not depend on the rest of the batch, as it would with
    `torch.multinomial`.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self._generators]
        )
        return scores.float() - noise.log().to(scores.device)


def prompt_generators(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    """Return a random generator for each prompt, which depends on the seed and on earlier copies of the prompt only.

    Args:
        prompts: token ids of each prompt.
        seed: seed of all draws.
    """
    copies: defaultdict[tuple[int, ...], int] = defaultdict(int)
    generators = []
    for prompt in prompts:
        generators.append(torch.Generator().manual_seed((seed * 1_000_003 + copies[tuple(prompt)]) % 2**63))
        copies[tuple(prompt)] += 1
    return generators
