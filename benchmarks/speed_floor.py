"""The floor under every method: what the frozen base alone costs, which also takes turns in the speed benchmark."""

import time
from collections.abc import Sequence

import torch
from speed_contenders import base_of, synchronize
from speed_jobs import Job
from torch import Tensor

from peftly.attention import Packing, no_mask, packed
from peftly.data import Encoded, pack
from peftly.data.encoding import UNTRAINED
from peftly.objective import row_logits, row_losses

__all__ = ["Floor"]


class Floor:
    """The frozen base alone: forward, and back to its input, over the real tokens, its head at labelled positions only.

    Words that all rows of a batch begin with are computed once. Nothing is trained, so there is no adapter that could
    be slow.
    """

    def __init__(self, job: Job, batch: int, dtype: str, device: str | None) -> None:
        self.job, self.batch = job, batch
        self.model, self.tokenizer = base_of(job, dtype, device)
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().register_forward_hook(lambda *call: call[-1].requires_grad_())

    def turn(self, rows: Sequence[Encoded], step: int) -> float:
        """Go through all rows, and return the seconds."""
        synchronize()
        began = time.perf_counter()
        for start in range(0, len(rows), step):
            of_step = sorted(rows[start : start + step], key=lambda row: row.num_tokens)
            for first in range(0, step, self.batch):
                with packed(self.model):
                    logits, targets = self._logits(of_step[first : first + self.batch])
                row_losses(logits, targets).sum().backward()
        synchronize()
        return time.perf_counter() - began

    def _logits(self, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        device = self.model.device
        if self.job.task == "causal_lm":
            batch = pack(rows)
            lengths, labels = batch["lengths"].tolist(), batch["labels"][0, 1:]
            packing = Packing(lengths, shared=len(labels) + 1 - sum(lengths))
            labelled = labels.ne(UNTRAINED).nonzero().squeeze(1)
            read = self._read(batch["input_ids"], packing)
            logits, _ = row_logits(self.model, labelled.to(device), read, use_cache=False, packing=packing)
            return logits, labels[labelled].to(device)
        packing = Packing([len(row.input_ids) for row in rows])
        ids = torch.tensor([[token for row in rows for token in row.input_ids]])
        hidden = self.model.base_model(**self._read(ids, packing), packing=packing)[0][0]
        firsts = torch.tensor([0, *packing.lengths[:-1]]).cumsum(0).to(device)
        pooled = self.model.base_model.pooler(hidden[firsts][:, None])
        return self.model.classifier(pooled), torch.tensor([row.label for row in rows]).to(device)

    def _read(self, ids: Tensor, packing: Packing) -> dict[str, Tensor]:
        device = self.model.device
        positions = packing.positions(device)
        return {"input_ids": ids.to(device), "attention_mask": no_mask(device), "position_ids": positions}
