"""The loss of a batch: minus the log-probability of every target, be it a token, a class or a tag.

Language models have their output head at labelled rows only.

In text that is mostly prompt the head is the largest single product of a small model with a large vocabulary, and
almost all of its rows go unread. Here a hook on the head itself keeps the rows whose *next* token is labelled,
so any model saves the work, and its logit scales and soft-capping stay where the model applies them.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from peftly.inference import Logits, labelled_logits
from peftly.kernels import row_losses

__all__ = ["target_losses"]


def target_losses(model: nn.Module, batch: Mapping[str, Tensor], logits_of: Logits = labelled_logits) -> Tensor:
    """Return -log p of every target of a batch, row by row, (count,), fp32 (fp64 for a model in fp64).

    Args:
        model: a model, wrapped for data parallelism or not.
        batch: `input_ids`, `attention_mask` and `labels`, each (rows, columns); labels stand in the column of their own
            token and are `IGNORED` where nothing is trained. See `collate` for the labels of other tasks.
        logits_of: what the model's task makes of a batch.

    Without a target there is no loss, and its sum still has a (zero) gradient, as data parallelism needs.
    """
    return row_losses(*logits_of(model, batch))
