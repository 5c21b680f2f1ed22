"""Who takes turns where text is generated: one base with several LoRA adapters, and each row of a batch has its own."""

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

__all__ = ["PeftWriter", "PeftlyWriter", "prompts_of"]

NAMES = ("first", "second", "third", "fourth")
SPREAD = 0.02
"""Of the random numbers in the adapters: enough for each to write something else."""


def prompts_of(job: Job, tokenizer: object) -> list[Example]:
    """Return the rows' prompts."""
    return [replace(example, completion="") for example in data_of(job, tokenizer).train.examples]


def write_adapters(job: Job, folder: Path, dtype: str, device: str | None) -> None:
    """Write an adapter called by each of `NAMES`, which says something else than the others."""
    for number, name in enumerate(NAMES):
        model = adapted(job, dtype, device).model
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in trainable_parameters(model).values():
                parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
        save_adapter(model, folder / name)


def owners(count: int) -> list[str]:
    """Return whose each row is: neighbours have different adapters, as requests that come in have."""
    return [NAMES[row % len(NAMES)] for row in range(count)]


class PeftWriter:
    """PEFT's `generate` with `adapter_names`."""

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        base, self.tokenizer = base_of(job, dtype, device)
        self.tokenizer.padding_side = "left"
        with tempfile.TemporaryDirectory() as folder:
            write_adapters(job, Path(folder), dtype, device)
            self.model = peft.PeftModel.from_pretrained(base, Path(folder) / NAMES[0], adapter_name=NAMES[0])
            for name in NAMES[1:]:
                self.model.load_adapter(str(Path(folder) / name), adapter_name=name)
        self.model.eval()
        self.texts: list[str] = []

    def turn(self, rows: Sequence[Example], step: int) -> float:
        """Go on from every prompt, `step` at a time, and return the seconds."""
        self.texts = []
        synchronize()
        began = time.perf_counter()
        for start in range(0, len(rows), step):
            prompts = [row.prompt for row in rows[start : start + step]]
            read = self.tokenizer(prompts, padding=True, return_tensors="pt").to(self.model.device)
            written = self.model.generate(
                **read,
                adapter_names=owners(len(prompts)),
                max_new_tokens=self.job.writes,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            fresh = written[:, read["input_ids"].shape[1] :]
            self.texts += self.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        synchronize()
        return time.perf_counter() - began


class PeftlyWriter:
    """peftly's `generate` with `adapters`."""

    def __init__(self, job: Job, dtype: str, device: str | None) -> None:
        self.job = job
        self.model, self.tokenizer = self._loaded(dtype, device)
        self.texts: list[str] = []

    def _loaded(self, dtype: str, device: str | None) -> Base:
        base = base_of(self.job, dtype, device)
        with tempfile.TemporaryDirectory() as folder:
            write_adapters(self.job, Path(folder), dtype, device)
            for name in NAMES:
                load_adapter(base.model, Path(folder) / name, name=name)
        return base

    def turn(self, rows: Sequence[Example], step: int) -> float:
        """Go on from every prompt, `step` at a time, and return the seconds."""
        synchronize()
        began = time.perf_counter()
        self.texts = generate(
            self.model,
            self.tokenizer,
            [row.prompt for row in rows],
            max_new_tokens=self.job.writes,
            batch_size=step,
            adapters=owners(len(rows)),
        )
        synchronize()
        return time.perf_counter() - began
