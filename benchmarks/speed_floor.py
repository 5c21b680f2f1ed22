"""Floor of the speed benchmark: time of the frozen base alone, below the time of every method."""

import time
from collections.abc import Sequence

from speed_contenders import base_of, synchronize
from speed_jobs import Job

from peftly import PromptTuning, attach, use_adapters
from peftly.data import EncodedExample, collate
from peftly.evaluation.tasks import SCORINGS
from peftly.kernels.cross_entropy import token_cross_entropy
from peftly.kernels.packed_attention import use_packed_attention
from peftly.models.tasks import task_of

__all__ = ["Floor"]


class Floor:
    """Frozen base alone: forward pass, and backward pass to its input.

    The base reads real tokens only, and its head reads labelled positions only. Tokens that all examples of a batch
    begin with are computed once. Nothing is trained: the attached adapter is off, and only its hooks are used, which
    pack examples.
    """

    def __init__(self, job: Job, batch_size: int, dtype: str, device: str | None) -> None:
        self.job, self.batch_size = job, batch_size
        self.model, self.tokenizer = base_of(job, dtype, device)
        attach(self.model, PromptTuning(num_virtual_tokens=1, init="random"))
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().register_forward_hook(lambda *call: call[-1].requires_grad_())
        self.logits_of = SCORINGS[task_of(self.model)].logits

    def time_steps(self, examples: Sequence[EncodedExample], step_size: int) -> float:
        """Run all examples through the base, forward and backward, and return the seconds."""
        pad_id = int(self.tokenizer.pad_token_id or 0)
        synchronize()
        start = time.perf_counter()
        for first in range(0, len(examples), step_size):
            step = sorted(examples[first : first + step_size], key=lambda example: example.num_tokens)
            for offset in range(0, step_size, self.batch_size):
                batch = collate(step[offset : offset + self.batch_size], pad_id=pad_id)
                batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                with use_packed_attention(self.model), use_adapters(self.model):
                    token_cross_entropy(*self.logits_of(self.model, batch)).sum().backward()
        synchronize()
        return time.perf_counter() - start
