"""Low-rank factors that start as what quantising a layer has cost (QERA, Zhang et al. 2024, arXiv:2410.06040).

The error of a quantised weight, `W - Q`, costs most where a layer's inputs are large. The factors of the best product
`B A` for inputs whose entries do not depend on each other are those of the error with every column as large as its
input is in the mean, divided by that again. (That is the approximate form of the paper; for inputs of equal size it is
the start of LoftQ, arXiv:2310.08659.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.data import collate
from peftly.errors import MethodError
from peftly.injection import evaluation_mode
from peftly.kernels import is_quantized, unpacked

if TYPE_CHECKING:
    from peftly.data import EncodedExample

__all__ = ["error_factors", "quantization_errors", "quantized_layers", "typical_inputs"]

TOKENS = 2048
"""Of the rows that are read to see how large inputs are; more change the factors little."""

SMALLEST = 1e-6
"""What an input counts for at least, as a share of the largest: of one that is always 0 nothing is known."""


def error_factors(error: Tensor, inputs: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A and B for which `scaling B A x` is as near to `error x` as a product of that rank comes in the mean.

    Args:
        error: (out_features, in_features), on the CPU.
        inputs: (in_features,), the root of the mean square of each input.
        rank: inner dimension.
        scaling: see `lora_scaling`.

    Returns:
        (rank, in_features) and (out_features, rank).
    """
    sizes = inputs.clamp_min(SMALLEST * float(inputs.max()))
    rank_at_most = min(rank, *error.shape)
    # Twice the rank and four rounds come within a thousandth of the whole decomposition, in a hundredth of its time.
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        u, s, v = torch.svd_lowrank(error * sizes, q=min(2 * rank, *error.shape), niter=4)
    root = (s[:rank_at_most] / scaling).sqrt()
    lora_a = error.new_zeros(rank, error.shape[1])
    lora_b = error.new_zeros(error.shape[0], rank)
    lora_a[:rank_at_most] = root[:, None] * v.T[:rank_at_most] / sizes
    lora_b[:, :rank_at_most] = u[:, :rank_at_most] * root
    return lora_a, lora_b


def quantized_layers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the quantised ones of `layers`, which are by path.

    Raises:
        MethodError: there is none.
    """
    quantized = {path: layer for path, layer in layers.items() if is_quantized(layer)}
    if not quantized:
        raise MethodError(
            "init: qera starts from what quantising the base has cost, and no layer that is changed is quantised; open "
            "the base with quantization, or leave init out"
        )
    return quantized


def quantization_errors(
    layers: Mapping[str, nn.Module], original: Callable[[], nn.Module] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield what was lost of the weight of each layer, (out_features, in_features), on the CPU, by path.

    Args:
        layers: quantised ones, by their paths in the model.
        original: opens the model as it was before it was quantised.

    Raises:
        MethodError: it is not to be had, or is another model.
    """
    if original is None:
        raise MethodError("init: qera needs the base as it was before it was quantised; use peftly.attach")
    whole = dict(original().named_modules())
    for path, layer in layers.items():
        if path not in whole:
            raise MethodError(f"init: qera: the original of this base has no layer {path}; open it with load_base")
        before: Any = whole[path]
        # Of a Conv1D the weight is kept the other way round.
        weight = before.weight.T if isinstance(before, Conv1D) else before.weight
        yield path, weight.detach().float() - unpacked(layer, torch.float32).cpu()


def typical_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], rows: Sequence[EncodedExample]
) -> dict[str, Tensor]:
    """Return how large the inputs of linear `layers` are on some of the `rows`, by path: see `error_factors`.

    Raises:
        MethodError: there are no rows.
    """
    if not rows:
        raise MethodError(
            "init: qera needs rows of the kind that will be trained on: attach(..., rows=data.train.encoded)"
        )
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def see(path: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().float().flatten(0, -2)
        sums[path] = sums.get(path, 0) + x.square().sum(0)
        counts[path] += len(x)

    handles = [layer.register_forward_pre_hook(partial(see, path)) for path, layer in layers.items()]
    try:
        for inputs in _calls(model, rows):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    unseen = [path for path in layers if path not in sums]
    if unseen:
        raise MethodError(f"init: qera: {unseen[0]} is not called on these rows, so its inputs are not known")
    return {path: (total / counts[path]).sqrt().cpu() for path, total in sums.items()}


def _calls(model: Any, rows: Sequence[EncodedExample]) -> Iterator[dict[str, Tensor]]:
    """Yield what the model is called with: a row at a time, which has no padding, from all over the rows."""
    tokens = sum(row.num_tokens for row in rows)
    with evaluation_mode(model):
        for row in rows[:: max(1, tokens // TOKENS)]:
            inputs = {name: tensor.to(model.device) for name, tensor in collate([row], pad_id=0).items()}
            inputs.pop("prompt_positions", None)
            if not model.config.is_encoder_decoder:
                del inputs["labels"]
            yield inputs
