"""The losses of a micro-batch: from examples to tensors, through the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from peftly.adapters import use_prompt_positions
from peftly.data import EncodedExample, collate, collate_packed
from peftly.evaluation import scoring_for, target_losses
from peftly.inference import IGNORED
from peftly.injection import packed_call, role_of, virtual_token_ids
from peftly.kernels import Packing
from peftly.training.checks import adapters_of_job
from peftly.training.job import AdapterJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MicroBatch", "MicroBatchLosses"]


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model at once.

    Attributes:
        examples: examples of the micro-batch.
        jobs: index in the step's work of the job of each example.
        is_empty: whether the process has no example left; it takes part with `examples`, without a target.
    """

    examples: Sequence[EncodedExample]
    jobs: Sequence[int]
    is_empty: bool = False


class MicroBatchLosses:
    """Computes the losses of micro-batches, from one packed sequence where possible, else from a padded batch.

    Attributes:
        is_packed: whether the examples of a micro-batch are collated to one packed sequence; see `collate_packed`.
    """

    def __init__(self, model: "PreTrainedModel", jobs: Sequence[AdapterJob], *, packed: bool) -> None:
        """Look up the logits of the task.

        Args:
            model: adapted model.
            jobs: jobs under training.
            packed: whether the examples of a batch are packed; see `packs_examples`.

        Raises:
            DataError: the examples are encoded for another task.
        """
        scorings = []
        for job in jobs:
            with adapters_of_job(model, job.adapter):
                scorings.append(scoring_for(model, job.data.train, job.data.row_format))
        self._model, self._logits_of = model, scorings[0].logits
        # The head of a sequence classifier reads a batch, so the hooks pack and pad inside the stack.
        self.is_packed = packed and all(job.data.train.encoded[0].label is None for job in jobs)
        self._shares_prefix = role_of(model) == "decoder"
        self._pad_id = int(jobs[0].tokenizer.pad_token_id or 0)

    def __call__(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """Return the loss of every target of a micro-batch, example by example, (targets,).

        Args:
            model: model, wrapped for data parallelism or not.
            micro_batch: examples, whose adapters are active.
        """
        return self._of_sequence(model, micro_batch) if self.is_packed else self._of_batch(model, micro_batch)

    def _of_sequence(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        examples = micro_batch.examples
        with use_prompt_positions(self._model, [example.prompt_positions for example in examples]):
            virtual_tokens = virtual_token_ids(self._model, len(examples))
        batch = collate_packed(examples, virtual_tokens=virtual_tokens, shares_prefix=self._shares_prefix)
        tensors = {name: tensor.to(self._model.device) for name, tensor in batch.tensors.items()}
        if micro_batch.is_empty:
            tensors |= {name: tensors[name][:0] for name in ("targets", "target_indices")}
        with packed_call(self._model, Packing(batch.lengths, shared=batch.shared)):
            return target_losses(model, tensors, self._logits_of)

    def _of_batch(self, model: nn.Module, micro_batch: MicroBatch) -> Tensor:
        batch = collate(micro_batch.examples, pad_id=self._pad_id)
        if micro_batch.is_empty:
            batch["labels"].fill_(IGNORED)
        tensors = {name: tensor.to(self._model.device) for name, tensor in batch.items()}
        with use_prompt_positions(self._model, batch.get("prompt_positions")):
            return target_losses(model, tensors, self._logits_of)
