"""Contenders of the speed benchmark for generation: one base, several LoRA adapters, one adapter for each prompt."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
import torch
from speed_contenders import adapted, base_of, data_of, synchronize
from speed_jobs import Job

from peftly import generate, load_adapter, save_adapter, trainable_parameters
from peftly.data import Example
from peftly.models.loading import Base

__all__ = ["PeftGeneration", "PeftlyGeneration", "prompts_of"]

ADAPTERS = ("first", "second", "third", "fourth")
SPREAD = 0.02
"""Standard deviation of the random adapter weights, large enough for a different text from each adapter."""


def prompts_of(job: Job, tokenizer: object) -> list[Example]:
    """Return the prompts of the examples of a job."""
    return [replace(example, completion="") for example in data_of(job, tokenizer).train.examples]


def save_adapters(job: Job, folder: Path, dtype: str, device: str | None) -> None:
    """Save an adapter with random weights under each name in `ADAPTERS`."""
    for seed, name in enumerate(ADAPTERS):
        model = adapted(job, dtype, device).model
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trainable_parameters(model).values():
                parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, folder / name)


def adapters_of_prompts(count: int) -> list[str]:
    """Return the adapter of each prompt. Neighbours have different adapters, like the requests to a server."""
    return [ADAPTERS[index % len(ADAPTERS)] for index in range(count)]


class PeftGeneration:
    """PEFT's `generate` with `adapter_names`.

    Attributes:
        texts: generated texts of the last timed run.
    """

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        base, self.tokenizer = base_of(job, dtype, device)
        self.tokenizer.padding_side = "left"
        with tempfile.TemporaryDirectory() as folder:
            save_adapters(job, Path(folder), dtype, device)
            self.model = peft.PeftModel.from_pretrained(base, Path(folder) / ADAPTERS[0], adapter_name=ADAPTERS[0])
            for name in ADAPTERS[1:]:
                self.model.load_adapter(str(Path(folder) / name), adapter_name=name)
        self.model.eval()
        self.texts: list[str] = []

    def time_steps(self, examples: Sequence[Example], batch_size: int) -> float:
        """Continue every prompt, `batch_size` prompts at a time, and return the seconds."""
        self.texts = []
        synchronize()
        start = time.perf_counter()
        for first in range(0, len(examples), batch_size):
            prompts = [example.prompt for example in examples[first : first + batch_size]]
            encoded = self.tokenizer(prompts, padding=True, return_tensors="pt").to(self.model.device)
            generated = self.model.generate(
                **encoded,
                adapter_names=adapters_of_prompts(len(prompts)),
                max_new_tokens=self.job.new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            new_tokens = generated[:, encoded["input_ids"].shape[1] :]
            self.texts += self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        synchronize()
        return time.perf_counter() - start


class PeftlyGeneration:
    """peftly's `generate` with `adapters`.

    Attributes:
        texts: generated texts of the last timed run.
    """

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        self.model, self.tokenizer = self._load(dtype, device)
        self.texts: list[str] = []

    def _load(self, dtype: str, device: str | None) -> Base:
        base = base_of(self.job, dtype, device)
        with tempfile.TemporaryDirectory() as folder:
            save_adapters(self.job, Path(folder), dtype, device)
            for name in ADAPTERS:
                load_adapter(base.model, Path(folder) / name, name=name)
        return base

    def time_steps(self, examples: Sequence[Example], batch_size: int) -> float:
        """Continue every prompt, `batch_size` prompts at a time, and return the seconds."""
        synchronize()
        start = time.perf_counter()
        self.texts = generate(
            self.model,
            self.tokenizer,
            [example.prompt for example in examples],
            max_new_tokens=self.job.new_tokens,
            batch_size=batch_size,
            adapters=adapters_of_prompts(len(examples)),
        )
        synchronize()
        return time.perf_counter() - start
