"""The gradient of a step, accumulated over as many micro-batches as memory requires.

The loss of a step is the sum over all its targets (trained tokens, tags or classes), in all its batches on all
processes, divided by their number: never a mean of means, so that 8 accumulated batches of 1 example and 1 batch of 8
examples are the same step. Every process knows the examples of the whole step, so that the number of targets costs no
communication.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from peftly.adapters import use_adapters
from peftly.data import EncodedExample, token_counts
from peftly.injection import blocks_of, checkpointed_blocks, role_of
from peftly.training.frozen_layers import FrozenLayers, frozen_layers
from peftly.training.job import AdapterJob
from peftly.training.loss_scale import LossScale
from peftly.training.losses import MicroBatch, MicroBatchLosses
from peftly.training.micro_batches import MicroBatchSplitter, fast_tokens, fitting_tokens
from peftly.training.sharding import is_sharded, sum_gradients
from peftly.training.steps import common_prefix_length, micro_batches_of_process

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["StepGradients", "StepWork"]

StepWork = Sequence[tuple[AdapterJob, Sequence[EncodedExample]]]
"""The jobs that take part in a step, each with its examples."""


class StepGradients:
    """Computes the gradients of steps within the memory that there is.

    Attributes:
        is_sharded: whether the base is sharded over the processes.
        wrapped: model, wrapped for data parallelism if there are several processes and the base is not sharded.
        micro_batch_losses: losses of the targets of a micro-batch.
        frozen: cached hidden states of the training examples below all training.
        splitter: splits the examples of a step into micro-batches.
        limits: limit of the splitter from each step on, by the number of the step.
        loss_scale: loss scaling for models that compute in fp16.
        may_checkpoint: whether gradient checkpointing may be enabled, should memory be short.
        modes: changes made to the model during training; the caller closes them.
    """

    def __init__(
        self, model: "PreTrainedModel", jobs: Sequence[AdapterJob], accelerator: "Accelerator", *, packed: bool
    ) -> None:
        """Prepare the model and the caches.

        Args:
            model: adapted model.
            jobs: jobs under training.
            accelerator: accelerator of the run.
            packed: whether the examples of a batch are packed; see `packs_examples`.
        """
        self.model, self.jobs, self.accelerator = model, jobs, accelerator
        # A single process needs no preparation, and accelerate would refuse some quantised models.
        several = accelerator.num_processes > 1
        self.is_sharded = is_sharded(model)
        self.wrapped: nn.Module = accelerator.prepare_model(model) if several and not self.is_sharded else model
        self.micro_batch_losses = MicroBatchLosses(model, jobs, packed=packed)
        # All processes must run the blocks of a sharded base together, and may have cached different examples.
        reuses = not self.is_sharded and any(job.reuses_frozen_states() for job in jobs)
        blocks = frozen_layers(model) if reuses else []
        self.frozen = FrozenLayers(blocks, [job.data.train.encoded for job in jobs])
        is_unset = all(job.config.gradient_checkpointing is None for job in jobs)
        self.may_checkpoint = is_unset and bool(blocks_of(model))
        self.modes = ExitStack()
        dtypes = {getattr(module, "compute_dtype", None) for module in model.modules()}  # of quantised layers
        self.loss_scale = LossScale(model.device, torch.float16 if torch.float16 in dtypes else model.dtype)
        self.limits: dict[int, int] = {}
        self.splitter = MicroBatchSplitter(
            fast_tokens(model.device),
            packed=packed,
            causal=role_of(model) == "decoder",
            num_virtual_tokens=max(job.num_virtual_tokens() for job in jobs),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; see `load_state_dict`."""
        return {
            "loss_scale": self.loss_scale.state_dict(),
            "limits": dict(self.limits),
            "may_checkpoint": self.may_checkpoint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state_dict` of another run of these jobs, which are at the same step."""
        self.loss_scale.load_state_dict(state["loss_scale"])
        if self.may_checkpoint and not state["may_checkpoint"]:
            self.may_checkpoint = False
            self.modes.enter_context(checkpointed_blocks(self.model))
        self.limits = state["limits"]
        self.refill_frozen_layers()
        self.splitter.limit = list(self.limits.values())[-1]

    def refill_frozen_layers(self) -> None:
        """Store the outputs of frozen layers again, for the micro-batches of the steps so far.

        The last digits of an example's hidden states depend on the other examples of its micro-batch.
        """
        streams: list[tuple[AdapterJob, Iterator[list[EncodedExample]]]] = []
        if self.frozen.blocks:
            streams = [(job, job.examples_of_steps(0, job.step)) for job in self.jobs]
        # With several processes, an example may have been on another process in an earlier epoch.
        several = self.accelerator.num_processes > 1
        for step in range(max(job.step if several else job.steps_per_epoch for job in self.jobs)):
            self.splitter.limit = self.limits.get(step, self.splitter.limit)
            work = [(job, examples) for job, stream in streams if (examples := next(stream, None)) is not None]
            for micro_batch in self.micro_batches(work):
                with self.active_adapters(work, micro_batch):
                    # The model without its wrapper: processes would wait for each other, and they have different
                    # numbers of examples left.
                    self.frozen.store(micro_batch.examples, partial(self.losses, self.model, micro_batch))

    def set_micro_batch_limit(self) -> None:
        """Choose the limit of the splitter, unless a checkpoint has set it."""
        if not self.limits:
            self.limits[0] = self.splitter.limit = self.micro_batch_tokens()
            self.frozen.discard_all()  # the states of an example that was alone in a batch

    def micro_batch_tokens(self) -> int:
        """Return how many tokens may go through the model at once: as configured, else as memory and speed allow."""
        configured = [job.config.micro_batch_tokens for job in self.jobs]
        if limits := [limit for limit in configured if limit is not None]:
            return min(limits)
        if self.is_sharded:  # a forward pass would count the gathered parameters as saved activations
            return fast_tokens(self.model.device)
        job = max(self.jobs, key=lambda job: max(token_counts(job.data.train.encoded)))
        counts = token_counts(job.data.train.encoded)
        longest = job.data.train.encoded[counts.index(max(counts))]
        fitting, tokens = self.fitting_tokens(job, longest), self.splitter.num_tokens([longest.num_tokens])
        if fitting < tokens and self.may_checkpoint:
            self.enable_gradient_checkpointing(f"an example of {tokens:,} tokens alone takes too much memory")
            fitting = self.fitting_tokens(job, longest)
        return min(fast_tokens(self.model.device), fitting)

    def fitting_tokens(self, job: AdapterJob, example: EncodedExample) -> int:
        """Return how many tokens fit into the memory of every process, measured on one example; 1 if it does not fit.

        Args:
            job: job of the example.
            example: example that is used for the measurement.
        """
        device, tokens = self.model.device, self.splitter.num_tokens([example.num_tokens])
        generators = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
        with job.active(), generators, self.accelerator.no_sync(self.wrapped):
            try:
                micro_batch = MicroBatch([example], [0])
                fitting = fitting_tokens(self.model, lambda: self.loss_sums(micro_batch, 1), tokens, device)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                fitting = 1  # every example alone; the step that has this one reports the failure
        return int(self.accelerator.gather(torch.tensor([fitting], device=self.accelerator.device)).min())

    def enable_gradient_checkpointing(self, reason: str) -> None:
        """Compute every block twice from here on, and note the reason."""
        self.may_checkpoint = False
        self.modes.enter_context(checkpointed_blocks(self.model))
        for job in self.jobs:
            job.log.note(
                f"{reason}: every block is computed twice from here on and stores less, which is slower "
                "(train.gradient_checkpointing); the steps stay the same"
            )

    def compute(self, work: StepWork) -> list[float]:
        """Compute the gradient of each job's mean loss in the `grad` of its parameters.

        The step is repeated with half as many tokens at once where memory runs out, and with a smaller loss scale
        where gradients overflow.

        Args:
            work: jobs of the step with their examples.

        Returns:
            The mean loss of each job over the targets of its examples.

        Raises:
            TrainingError: memory runs out with one example at once.
        """
        while True:
            try:
                losses = self.accumulate(work)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            else:
                optimizers = [job.optimizer for job, _ in work]
                if not all(map(math.isfinite, losses)) or self.loss_scale.unscale_all(optimizers):
                    return losses
                self.discard(work)
                continue
            # Outside of the `except`, whose traceback holds the tensors of the attempt.
            self.reduce_memory(work)

    def discard(self, work: StepWork) -> None:
        """Discard the results of an attempt: gradients, and the outputs of frozen layers for new examples."""
        for job, examples in work:
            job.optimizer.zero_grad(set_to_none=True)
            if job.step < job.steps_per_epoch:
                self.frozen.discard(examples)

    def reduce_memory(self, work: StepWork) -> None:
        """Halve the tokens that go through the model at once; enable gradient checkpointing if that is impossible.

        Raises:
            TrainingError: neither is possible.
        """
        self.discard(work)
        clear_device_cache(garbage_collection=True)
        examples = [example for _, of_job in work for example in of_job]
        lengths, shared = [example.num_tokens for example in examples], common_prefix_length(examples)
        step, largest = work[0][0].step + 1, self.splitter.largest(lengths, shared)
        # Several processes would wait for this one in the middle of the step.
        is_alone = self.accelerator.num_processes == 1
        if is_alone and self.splitter.halve(lengths, shared):
            self.limits[max(job.step for job, _ in work)] = self.splitter.limit
            for job, _ in work:
                job.log.note(
                    f"memory ran out at step {job.step + 1}: from here on at most {self.splitter.limit:,} tokens go "
                    "through the model at once (train.micro_batch_tokens); the steps stay the same"
                )
        elif is_alone and self.may_checkpoint:
            self.enable_gradient_checkpointing(f"memory ran out at step {step} with {largest:,} tokens at once")
        else:
            work[0][0].fail_out_of_memory(largest)

    def accumulate(self, work: StepWork) -> list[float]:
        """Compute the gradients once; for the arguments and the result see `compute`."""
        counts = torch.tensor([float(max(1, sum(example.num_targets for example in own))) for _, own in work])
        micro_batches = self.micro_batches(work)
        sums_of_batches = []
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            no_sync = nullcontext() if is_last else self.accelerator.no_sync(self.wrapped)
            with no_sync, self.active_adapters(work, micro_batch):
                sums = self.loss_sums(micro_batch, len(work))
                # Data parallelism averages gradients over the processes, and the loss needs their sum.
                averaged = 1 if self.is_sharded else self.accelerator.num_processes
                loss = (sums * (averaged / counts.to(sums))).sum()
                if loss.requires_grad:  # else no trained layer was used, which the first step refuses
                    self.accelerator.backward(self.loss_scale.scale(loss))
            sums_of_batches.append(sums.detach())
        if self.is_sharded:
            sum_gradients(parameter for job, _ in work for parameter in job.parameters.values())
        total = self.accelerator.reduce(torch.stack(sums_of_batches).sum(0), "sum")
        return [float(loss) for loss in total.double().cpu() / counts]

    def micro_batches(self, work: StepWork) -> list[MicroBatch]:
        """Return the micro-batches of a step on this process."""
        if not work:
            return []
        examples = [example for _, of_job in work for example in of_job]
        jobs = [number for number, (_, of_job) in enumerate(work) for _ in of_job]
        shortest = min(range(len(examples)), key=lambda index: examples[index].num_tokens)
        micro_batches = []
        for indices in micro_batches_of_process(examples, self.splitter, self.accelerator):
            chosen = indices or [shortest]
            micro_batches.append(
                MicroBatch([examples[i] for i in chosen], [jobs[i] for i in chosen], is_empty=not indices)
            )
        return micro_batches

    def loss_sums(self, micro_batch: MicroBatch, num_jobs: int) -> Tensor:
        """Return the summed loss of each job's examples in a micro-batch, (num_jobs,)."""
        losses = self.losses(self.wrapped, micro_batch)
        if num_jobs == 1:
            return losses.sum()[None]
        # Targets come example by example.
        targets = torch.tensor([example.num_targets for example in micro_batch.examples], dtype=torch.long)
        jobs = torch.tensor(micro_batch.jobs, dtype=torch.long).repeat_interleave(targets).to(losses.device)
        return torch.stack([losses[jobs == job].sum() for job in range(num_jobs)])

    def losses(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """Return the loss of every target of a micro-batch, (targets,), and use the cache of frozen layers."""
        with self.frozen.use([] if micro_batch.is_empty else micro_batch.examples):
            return self.micro_batch_losses(model, micro_batch)

    def active_adapters(self, work: StepWork, micro_batch: MicroBatch) -> AbstractContextManager[None]:
        """Return a context in which each example of a micro-batch has the adapter of its job."""
        if len(work) == 1:
            return work[0][0].active()
        return use_adapters(self.model, adapters=[work[job][0].adapter for job in micro_batch.jobs])
