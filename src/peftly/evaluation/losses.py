"""Loss of a batch: the negative log-probability of every target, which is a token, a class or a tag.

A language model computes logits at the positions whose next token is labelled only, see `labelled_logits`. In text that
is mostly prompt, the output head is the most expensive layer of a small model with a large vocabulary.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from peftly.inference import Logits, labelled_logits
from peftly.kernels import token_cross_entropy

__all__ = ["target_losses"]


def target_losses(model: nn.Module, batch: Mapping[str, Tensor], logits_of: Logits = labelled_logits) -> Tensor:
    """Return -log p of every target of a batch, (count,), in fp32 (fp64 for a model in fp64).

    A batch without a target has an empty loss whose sum has a zero gradient, as data parallelism needs.

    Args:
        model: model, wrapped for data parallelism or not.
        batch: `input_ids`, `attention_mask` and `labels`, each (batch, length). The label of a token is at the position
            of the token; it is `IGNORED` for tokens without loss. See `collate` for the labels of other tasks.
        logits_of: function that returns logits and targets of a batch, by the task of the model.
    """
    return token_cross_entropy(*logits_of(model, batch))
