"""Sampling of tokens: settings, logits processors, and draws that depend on a prompt and a seed only."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
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

from peftly.adapters import AdapterChoice
from peftly.data import EncodedExample
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


def prompt_generators(
    prompts: Sequence[EncodedExample], adapters: Sequence[AdapterChoice] | None, seed: int | Sequence[int] | None
) -> list[torch.Generator]:
    """Return a random generator for each prompt.

    Its draws depend on the tokens of the prompt, the seed, and the number of earlier copies of the prompt only. Copies
    with other adapters do not count, so that a prompt draws the same as in a call for its adapters alone.

    Args:
        prompts: encoded prompts.
        adapters: active adapters of each prompt; None: the same adapters for all prompts.
        seed: seed of all draws, or of the draws of each prompt; None: a new one from the operating system, whatever
            seed PyTorch has.
    """
    if seed is None:
        seed = torch.Generator().seed()  # torch.seed() would change the generator of the whole process
    seeds = seed if isinstance(seed, Sequence) else [seed] * len(prompts)
    copies: defaultdict[Hashable, int] = defaultdict(int)
    generators = []
    for index, (prompt, own_seed) in enumerate(zip(prompts, seeds, strict=True)):
        tokens = (tuple(prompt.input_ids), prompt.prompt_positions)
        choice = None if adapters is None else adapters[index]
        key = own_seed, tokens, choice if choice is None or isinstance(choice, str) else tuple(choice)
        digest = hashlib.sha256(repr((own_seed, tokens, copies[key])).encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True)))
        copies[key] += 1
    return generators
