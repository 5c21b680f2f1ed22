"""The floor under every method: what the frozen base alone costs, which also takes turns in the speed benchmark."""

import time
from collections.abc import Sequence

from speed_contenders import base_of, synchronize
from speed_jobs import Job

from peftly import PromptTuning, attach, use_adapters
from peftly.data import EncodedExample, collate
from peftly.evaluation.tasks import SCORINGS
from peftly.kernels.cross_entropy import row_losses
from peftly.kernels.packed_attention import packed
from peftly.models.tasks import task_of

__all__ = ["Floor"]


class Floor:
    """The frozen base alone: forward, and back to its input, over the real tokens, its head at labelled positions only.

    Words that all rows of a batch begin with are computed once. Nothing is trained: an adapter is attached because it
    brings the hooks that pack rows, and it is off.
    """

    def __init__(self, job: Job, batch: int, dtype: str, device: str | None) -> None:
        self.job, self.batch = job, batch
        self.model, self.tokenizer = base_of(job, dtype, device)
        attach(self.model, PromptTuning(num_virtual_tokens=1, init="random"))
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().register_forward_hook(lambda *call: call[-1].requires_grad_())
        self.logits_of = SCORINGS[task_of(self.model)].logits

    def turn(self, rows: Sequence[EncodedExample], step: int) -> float:
        """Go through all rows, and return the seconds."""
        synchronize()
        began = time.perf_counter()
        for start in range(0, len(rows), step):
            of_step = sorted(rows[start : start + step], key=lambda row: row.num_tokens)
            for first in range(0, step, self.batch):
                batch = collate(of_step[first : first + self.batch], pad_id=int(self.tokenizer.pad_token_id or 0))
                batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                with packed(self.model), use_adapters(self.model):
                    row_losses(*self.logits_of(self.model, batch)).sum().backward()
        synchronize()
        return time.perf_counter() - began
