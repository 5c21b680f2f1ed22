"""The training loop: one, for every method and task.

A step's loss is the sum over all its targets (trained tokens, tags or classes), in all its batches on all processes,
divided by their number: never a mean of means, so that 1 example x 8 accumulated batches and 8 x 1 are the same step.
Every process knows the rows of the whole step, so this number costs no communication.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from peftly.adapt import use_adapters, use_places
from peftly.data import Encoded, collate
from peftly.frozen_layers import FrozenLayers, frozen_layers
from peftly.loss_scale import LossScale
from peftly.methods._body import blocks_of, role_of
from peftly.micro_batches import MicroBatches, fast_tokens, fitting_tokens
from peftly.modes import checkpointed_blocks
from peftly.objective import target_losses
from peftly.progress import TrainResult
from peftly.steps import common_words, process_batches
from peftly.tasks import task_for
from peftly.trainee import Trainee

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Loop"]


class Loop:
    """Steps of all trainees, of which each takes as many as it has.

    Attributes:
        results: of the trainees that have finished.
        at_work: the trainee that something is done for at this moment.
        frozen: what layers below all training have made of the rows so far.
        micro: how much goes through the model at once.
        scale: of the losses, where the model computes in fp16.
        may_checkpoint: whether blocks may be computed twice from now on, should memory be short.
        modes: what the loop changes on the model; open while it goes, and closed by whoever lets it.
    """

    def __init__(
        self, model: "PreTrainedModel", trainees: Sequence[Trainee], accelerator: "Accelerator", *, packed: bool
    ) -> None:
        self.model, self.trainees, self.accelerator = model, trainees, accelerator
        # Alone there is nothing to prepare, and accelerate would refuse some quantised models.
        several = accelerator.num_processes > 1
        self.wrapped: nn.Module = accelerator.prepare_model(model) if several else model
        tasks = [task_for(model, trainee.data.train, trainee.data.shape) for trainee in trainees]
        self.logits_of = tasks[0].logits
        self.at_work = trainees[0]
        self.results: dict[Trainee, TrainResult] = {}
        blocks = frozen_layers(model) if any(trainee.keeps_states() for trainee in trainees) else []
        self.frozen = FrozenLayers(blocks, [row for trainee in trainees for row in trainee.data.train.encoded])
        unasked = all(trainee.config.gradient_checkpointing is None for trainee in trainees)
        self.may_checkpoint = unasked and bool(blocks_of(model))
        self.modes = ExitStack()
        halves = {getattr(module, "compute_dtype", None) for module in model.modules()}  # of quantised layers
        self.scale = LossScale(torch.float16 if torch.float16 in halves else model.dtype)
        self.micro = MicroBatches(
            fast_tokens(model.device),
            packed=packed,
            causal=role_of(model) == "decoder",
            virtual=max(trainee.virtual_tokens() for trainee in trainees),
        )

    def go(self) -> list[TrainResult]:
        """Take steps until nobody has one left; whoever has none left is finished at once."""
        self.micro.limit = self.tokens_at_once()
        streams = [(trainee, trainee.steps_left()) for trainee in self.trainees]
        while work := self.next_rows(streams):
            began = time.perf_counter()
            losses = self.gradients(work)
            seconds = time.perf_counter() - began
            # Whose loss is no number gives up first: oneDNN's products in bf16 may take it on into the gradients of the
            # others, who would be blamed, and changed, before it.
            for (trainee, rows), loss in sorted(zip(work, losses, strict=True), key=lambda one: math.isfinite(one[1])):
                self.at_work = trainee
                trainee.update(rows, loss, seconds)
        return [self.results[trainee] for trainee in self.trainees]

    def next_rows(
        self, streams: Sequence[tuple[Trainee, Iterator[list[Encoded]]]]
    ) -> list[tuple[Trainee, list[Encoded]]]:
        """Return the rows of everybody's next step, and finish who has no more."""
        work = []
        for trainee, stream in streams:
            if trainee in self.results:
                continue
            rows = next(stream, None)
            if rows is not None:
                work.append((trainee, rows))
            else:
                self.at_work = trainee
                self.results[trainee] = trainee.finish()
        return work

    def tokens_at_once(self) -> int:
        """Return how many tokens may go through the model at once: as is set; or what is fast, if there is memory."""
        asked = [trainee.config.micro_batch_tokens for trainee in self.trainees]
        if found := [tokens for tokens in asked if tokens is not None]:
            return min(found)
        device = self.model.device
        trainee, row = max(
            ((trainee, row) for trainee in self.trainees for row in trainee.data.train.encoded),
            key=lambda pair: pair[1].num_tokens,
        )
        fitting, tokens = self.fitting(trainee, row), self.micro.tokens([row.num_tokens])
        if fitting < tokens and self.may_checkpoint:
            self.checkpoint(f"an example of {tokens:,} tokens alone takes too much memory")
            fitting = self.fitting(trainee, row)
        return min(fast_tokens(device), fitting)

    def fitting(self, trainee: Trainee, row: Encoded) -> int:
        """Return how many tokens fit into the memory of every process, measured on one row; 1 if that does not."""
        device, tokens, batch = self.model.device, self.micro.tokens([row.num_tokens]), collate([row], pad_id=0)
        seeds = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
        with trainee.chosen(), seeds, self.accelerator.no_sync(self.wrapped):
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
        for trainee in self.trainees:
            trainee.note(
                f"{why}: every block is computed twice from here on and keeps less, which is slower "
                "(train.gradient_checkpointing); the steps stay the same"
            )

    def gradients(self, work: Sequence[tuple[Trainee, Sequence[Encoded]]]) -> list[float]:
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
                parameters = [value for trainee, _ in work for value in trainee.parameters.values()]
                if not all(map(math.isfinite, losses)) or self.scale.unscale(parameters):
                    return losses
                self.forget(work)
                continue
            # Past the `except`, nothing of the attempt is held any more.
            self.take_less_at_once(work)

    def forget(self, work: Sequence[tuple[Trainee, Sequence[Encoded]]]) -> None:
        """Drop the gradients of an attempt."""
        for trainee, _ in work:
            trainee.optimizer.zero_grad(set_to_none=True)

    def take_less_at_once(self, work: Sequence[tuple[Trainee, Sequence[Encoded]]]) -> None:
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
            for trainee, _ in work:
                trainee.note(
                    f"memory ran out at step {trainee.step + 1}: from here on at most {self.micro.limit:,} tokens go "
                    "through the model at once (train.micro_batch_tokens); the steps stay the same"
                )
        elif alone and self.may_checkpoint:
            self.checkpoint(f"memory ran out at step {step} with {most:,} tokens at once")
        else:
            self.at_work = work[0][0]
            self.at_work.give_up(
                f"step {step}: memory ran out with {most:,} tokens at once",
                "lower train.micro_batch_tokens or data.max_length, or set train.gradient_checkpointing",
            )

    def attempt(self, work: Sequence[tuple[Trainee, Sequence[Encoded]]]) -> list[float]:
        """Do what `gradients` does, once."""
        rows = [row for _, own in work for row in own]
        owners = [place for place, (_, own) in enumerate(work) for _ in own]
        counts = torch.tensor([float(max(1, sum(row.num_targets for row in own))) for _, own in work])
        mine = process_batches(rows, self.micro, self.accelerator, work[0][0].tokenizer)
        found = []
        for number, (places, batch) in enumerate(mine):
            last = number == len(mine) - 1
            whose = [owners[place] for place in places]
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped), self.chosen(work, whose, batch):
                sums = self.sums(batch, [rows[place] for place in places], whose, len(work))
                # Data parallelism averages gradients over the processes; the sum is what is wanted.
                scale = self.scale.factor * self.accelerator.num_processes / counts.to(sums)
                self.accelerator.backward((sums * scale).sum())
            found.append(sums.detach())
        total = self.accelerator.reduce(torch.stack(found).sum(0), "sum")
        return [float(loss) for loss in total.double().cpu() / counts]

    def sums(self, batch: Mapping[str, Tensor], rows: Sequence[Encoded], whose: Sequence[int], jobs: int) -> Tensor:
        """Return the summed loss of each job's rows in a batch, (jobs,)."""
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        with use_places(self.model, batch.get("places")), self.frozen.use(rows):
            losses = target_losses(self.wrapped, inputs, self.logits_of)
        if jobs == 1:
            return losses.sum()[None]
        # Targets come row by row.
        targets = torch.tensor([row.num_targets for row in rows], dtype=torch.long)
        owners = torch.tensor(whose, dtype=torch.long).repeat_interleave(targets).to(losses.device)
        return torch.stack([losses[owners == place].sum() for place in range(jobs)])

    def chosen(
        self, work: Sequence[tuple[Trainee, Sequence[Encoded]]], whose: Sequence[int], batch: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Return a block in which each row of a batch has the adapter that it trains."""
        if len(work) == 1:
            return work[0][0].chosen()
        names = [work[place][0].adapter for place in whose] or [None] * len(batch["input_ids"])
        return use_adapters(self.model, rows=names)
