"""The gradient of a step: as many micro-batches as memory allows, one after another.

A step's loss is the sum over all its targets (trained tokens, tags or classes), in all its batches on all processes,
divided by their number: never a mean of means, so that 1 example x 8 accumulated batches and 8 x 1 are the same step.
Every process knows the rows of the whole step, so this number costs no communication.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from peftly.adapters import use_adapters, use_prompt_positions
from peftly.data import EncodedExample, collate
from peftly.evaluation import scoring_for, target_losses
from peftly.injection import blocks_of, checkpointed_blocks, role_of
from peftly.training.frozen_layers import FrozenLayers, frozen_layers
from peftly.training.job import AdapterJob
from peftly.training.loss_scale import LossScale
from peftly.training.micro_batches import MicroBatches, fast_tokens, fitting_tokens
from peftly.training.steps import common_words, process_batches

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Gradients", "Work"]

Work = Sequence[tuple[AdapterJob, Sequence[EncodedExample]]]
"""The rows of a step: of each adapter_job that takes part, its own."""


class Gradients:
    """Makes the gradients of steps, and gets by with the memory that there is.

    Attributes:
        frozen: what layers below all training have made of the rows so far.
        micro: how much goes through the model at once.
        limits: what that was at most, from which step on.
        scale: of the losses, where the model computes in fp16.
        may_checkpoint: whether blocks may be computed twice from now on, should memory be short.
        modes: what is changed on the model; open from the first step on, and closed by whoever let it.
    """

    def __init__(
        self, model: "PreTrainedModel", adapter_jobs: Sequence[AdapterJob], accelerator: "Accelerator", *, packed: bool
    ) -> None:
        self.model, self.adapter_jobs, self.accelerator = model, adapter_jobs, accelerator
        # Alone there is nothing to prepare, and accelerate would refuse some quantised models.
        several = accelerator.num_processes > 1
        self.wrapped: nn.Module = accelerator.prepare_model(model) if several else model
        tasks = [
            scoring_for(model, adapter_job.data.train, adapter_job.data.row_format) for adapter_job in adapter_jobs
        ]
        self.logits_of = tasks[0].logits
        blocks = frozen_layers(model) if any(adapter_job.keeps_states() for adapter_job in adapter_jobs) else []
        self.frozen = FrozenLayers(
            blocks, [row for adapter_job in adapter_jobs for row in adapter_job.data.train.encoded]
        )
        unasked = all(adapter_job.config.gradient_checkpointing is None for adapter_job in adapter_jobs)
        self.may_checkpoint = unasked and bool(blocks_of(model))
        self.modes = ExitStack()
        halves = {getattr(module, "compute_dtype", None) for module in model.modules()}  # of quantised layers
        self.scale = LossScale(torch.float16 if torch.float16 in halves else model.dtype)
        self.limits: dict[int, int] = {}
        self.micro = MicroBatches(
            fast_tokens(model.device),
            packed=packed,
            causal=role_of(model) == "decoder",
            virtual=max(adapter_job.virtual_tokens() for adapter_job in adapter_jobs),
        )

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from."""
        return {"scale": self.scale.state(), "limits": dict(self.limits), "may_checkpoint": self.may_checkpoint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of another run of these adapter_jobs, which are where they were then."""
        self.scale.restore(state["scale"])
        if self.may_checkpoint and not state["may_checkpoint"]:
            self.may_checkpoint = False
            self.modes.enter_context(checkpointed_blocks(self.model))
        self.limits = state["limits"]
        self.read_again()
        self.micro.limit = list(self.limits.values())[-1]

    def read_again(self) -> None:
        """Let the frozen layers see the rows of the steps so far, in the batches of then.

        What a layer makes of a row depends, in its last digits, on the rows beside it.
        """
        streams: list[tuple[AdapterJob, Iterator[list[EncodedExample]]]] = []
        if self.frozen.blocks:
            streams = [
                (adapter_job, adapter_job.rows_of_steps(0, adapter_job.step)) for adapter_job in self.adapter_jobs
            ]
        # Each of several processes meets rows in later epochs that others had before.
        several = self.accelerator.num_processes > 1
        for step in range(
            max(adapter_job.step if several else adapter_job.steps_per_epoch for adapter_job in self.adapter_jobs)
        ):
            self.micro.limit = self.limits.get(step, self.micro.limit)
            work = [(adapter_job, rows) for adapter_job, stream in streams if (rows := next(stream, None)) is not None]
            for rows, whose, batch in self.batches(work):
                with self.chosen(work, whose, batch):
                    # Without what wraps the model, whose processes wait for each other: not all have as many rows.
                    self.frozen.learn(rows, partial(self.losses, self.model, batch, rows))

    def begin(self) -> None:
        """Find out how much may go through the model at once, unless that is known from before."""
        if not self.limits:
            self.limits[0] = self.micro.limit = self.tokens_at_once()
            self.frozen.known.clear()  # of a row alone

    def tokens_at_once(self) -> int:
        """Return how many tokens may go through the model at once: as is set; or what is fast, if there is memory."""
        asked = [adapter_job.config.micro_batch_tokens for adapter_job in self.adapter_jobs]
        if found := [tokens for tokens in asked if tokens is not None]:
            return min(found)
        device = self.model.device
        adapter_job, row = max(
            ((adapter_job, row) for adapter_job in self.adapter_jobs for row in adapter_job.data.train.encoded),
            key=lambda pair: pair[1].num_tokens,
        )
        fitting, tokens = self.fitting(adapter_job, row), self.micro.tokens([row.num_tokens])
        if fitting < tokens and self.may_checkpoint:
            self.checkpoint(f"an example of {tokens:,} tokens alone takes too much memory")
            fitting = self.fitting(adapter_job, row)
        return min(fast_tokens(device), fitting)

    def fitting(self, adapter_job: AdapterJob, row: EncodedExample) -> int:
        """Return how many tokens fit into the memory of every process, measured on one row; 1 if that does not."""
        device, tokens, batch = self.model.device, self.micro.tokens([row.num_tokens]), collate([row], pad_id=0)
        seeds = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
        with adapter_job.chosen(), seeds, self.accelerator.no_sync(self.wrapped):
            try:
                fitting = fitting_tokens(self.model, lambda: self.sums(batch, [row], [0], 1), tokens, device)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                fitting = 1  # every row alone: the step that has this one says what to do
        return int(self.accelerator.gather(torch.tensor([fitting], device=self.accelerator.device)).min())

    def checkpoint(self, why: str) -> None:
        """Compute every block twice from here on, and say so."""
        self.may_checkpoint = False
        self.modes.enter_context(checkpointed_blocks(self.model))
        for adapter_job in self.adapter_jobs:
            adapter_job.note(
                f"{why}: every block is computed twice from here on and keeps less, which is slower "
                "(train.gradient_checkpointing); the steps stay the same"
            )

    def of(self, work: Work) -> list[float]:
        """Leave the gradient of each one's mean loss over its rows in its parameters, and return those losses.

        Where memory runs out, start again with half as much at once; where they overflow, with a smaller loss scale.
        """
        while True:
            try:
                losses = self.attempt(work)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            else:
                parameters = [value for adapter_job, _ in work for value in adapter_job.parameters.values()]
                if not all(map(math.isfinite, losses)) or self.scale.unscale(parameters):
                    return losses
                self.forget(work)
                continue
            # Past the `except`, nothing of the attempt is held any more.
            self.take_less_at_once(work)

    def forget(self, work: Work) -> None:
        """Drop what an attempt has left: the gradients, and what frozen layers have made of rows that are new."""
        for adapter_job, rows in work:
            adapter_job.optimizer.zero_grad(set_to_none=True)
            if adapter_job.step < adapter_job.steps_per_epoch:
                self.frozen.forget(rows)

    def take_less_at_once(self, work: Work) -> None:
        """Halve the tokens that go through the model at once; where that is done, checkpoint; and say so.

        Raises:
            TrainingError: neither is left.
        """
        self.forget(work)
        clear_device_cache(garbage_collection=True)
        rows = [row for _, own in work for row in own]
        lengths, shared = [row.num_tokens for row in rows], common_words(rows)
        step, most = work[0][0].step + 1, self.micro.most(lengths, shared)
        # Other processes wait for this one in the middle of the step.
        alone = self.accelerator.num_processes == 1
        if alone and self.micro.halve(lengths, shared):
            self.limits[max(adapter_job.step for adapter_job, _ in work)] = self.micro.limit
            for adapter_job, _ in work:
                adapter_job.note(
                    f"memory ran out at step {adapter_job.step + 1}: from here on at most {self.micro.limit:,} tokens go "
                    "through the model at once (train.micro_batch_tokens); the steps stay the same"
                )
        elif alone and self.may_checkpoint:
            self.checkpoint(f"memory ran out at step {step} with {most:,} tokens at once")
        else:
            work[0][0].give_up(
                f"step {step}: memory ran out with {most:,} tokens at once",
                "lower train.micro_batch_tokens or data.max_length, or set train.gradient_checkpointing",
            )

    def attempt(self, work: Work) -> list[float]:
        """Do what `of` does, once."""
        counts = torch.tensor([float(max(1, sum(row.num_targets for row in own))) for _, own in work])
        mine = self.batches(work)
        found = []
        for number, (rows, whose, batch) in enumerate(mine):
            last = number == len(mine) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped), self.chosen(work, whose, batch):
                sums = self.sums(batch, rows, whose, len(work))
                # Data parallelism averages gradients over the processes; the sum is what is wanted.
                scale = self.scale.factor * self.accelerator.num_processes / counts.to(sums)
                self.accelerator.backward((sums * scale).sum())
            found.append(sums.detach())
        total = self.accelerator.reduce(torch.stack(found).sum(0), "sum")
        return [float(loss) for loss in total.double().cpu() / counts]

    def batches(self, work: Work) -> list[tuple[list[EncodedExample], list[int], dict[str, Tensor]]]:
        """Return this process's micro-batches of a step, each with its rows, and with whose they are in `work`."""
        rows = [row for _, own in work for row in own]
        owners = [place for place, (_, own) in enumerate(work) for _ in own]
        cut = process_batches(rows, self.micro, self.accelerator, work[0][0].tokenizer) if work else []
        return [
            ([rows[place] for place in places], [owners[place] for place in places], batch) for places, batch in cut
        ]

    def sums(
        self, batch: Mapping[str, Tensor], rows: Sequence[EncodedExample], whose: Sequence[int], jobs: int
    ) -> Tensor:
        """Return the summed loss of each job's rows in a batch, (jobs,)."""
        losses = self.losses(self.wrapped, batch, rows)
        if jobs == 1:
            return losses.sum()[None]
        # Targets come row by row.
        targets = torch.tensor([row.num_targets for row in rows], dtype=torch.long)
        owners = torch.tensor(whose, dtype=torch.long).repeat_interleave(targets).to(losses.device)
        return torch.stack([losses[owners == place].sum() for place in range(jobs)])

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], rows: Sequence[EncodedExample]) -> Tensor:
        """Return the loss of every target of a batch, row by row, as `model` has it, wrapped or not."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        with use_prompt_positions(self.model, batch.get("prompt_positions")), self.frozen.use(rows):
            return target_losses(model, inputs, self.logits_of)

    def chosen(self, work: Work, whose: Sequence[int], batch: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Return a block in which each row of a batch has the adapter that it trains."""
        if len(work) == 1:
            return work[0][0].chosen()
        names = [work[place][0].adapter for place in whose] or [None] * len(batch["input_ids"])
        return use_adapters(self.model, rows=names)
