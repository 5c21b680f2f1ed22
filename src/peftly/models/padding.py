"""Models whose outputs for a text change with the padding beside it, whatever the attention mask says.

Their texts share a batch only with texts of the same length. In training, where batches are padded, the loss of an
example depends on its batch, as it does in every other tool.
"""

from typing import Any, Literal

__all__ = ["reads_padding"]

_ON_THE_RIGHT = {
    *("canine", "convbert", "funnel", "mobilebert", "nystromformer", "yoso"),  # convolutions, pooling and hashes
    *("fnet", "cpmant", "prophetnet"),  # mixing without a mask, and biases of positions
    *("t5gemma", "t5gemma2", "xlnet"),  # heads that read the last column
}
_ON_THE_LEFT = {
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
    *("prophetnet", "roformer", "trocr"),  # these and those above count columns, and take no positions
    *("recurrent_gemma", "rwkv", "deepseek_v4"),  # states that run over all columns
}
"""Types of models by their configs, measured on a tiny model of every type: texts of 6 and 17 tokens, relative
difference of the logits of the first one in a batch and alone above 1e-4."""


def reads_padding(model: Any, side: Literal["left", "right"] = "right") -> bool:
    """Return whether the outputs of a model for a text change with padding on this side of it."""
    return getattr(model.config, "model_type", None) in (_ON_THE_LEFT if side == "left" else _ON_THE_RIGHT)
