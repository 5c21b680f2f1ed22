"""Low-rank factors that correct the quantisation error of a layer (QERA, Zhang et al. 2024, arXiv:2410.06040).

The error of a quantised weight, `W - Q`, changes the output most where the inputs of the layer are large. Let D be the
diagonal matrix of the root mean squares of the inputs. For uncorrelated inputs, the best low-rank factors are
`B A = SVD_r((W - Q) D) D⁻¹`, where SVD_r is the best approximation of rank r. (This is the approximate form of the
paper; for inputs of equal size it is the initialisation of LoftQ, arXiv:2310.08659.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.data import collate, token_counts
from peftly.errors import MethodError
from peftly.injection import evaluation_mode
from peftly.kernels import dequantized_weight, is_quantized

if TYPE_CHECKING:
    from peftly.data import EncodedExample

__all__ = ["error_factors", "quantization_errors", "quantized_layers", "typical_inputs"]

CALIBRATION_TOKENS = 2048
"""Tokens on which the size of the inputs is measured. More tokens change the factors little."""

MIN_RELATIVE_SIZE = 1e-6
"""Smallest size of an input, relative to the largest, so that the division is defined for inputs that are always 0."""


def error_factors(error: Tensor, inputs: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A and B for which `scaling B A x` approximates `error x` best in the mean square, for uncorrelated inputs.

    Args:
        error: (out_features, in_features), on the CPU.
        inputs: root mean square of each input, (in_features,).
        rank: rank of the factors.
        scaling: factor of the update, see `lora_scaling`.

    Returns:
        A, (rank, in_features), and B, (out_features, rank).
    """
    sizes = inputs.clamp_min(MIN_RELATIVE_SIZE * float(inputs.max()))
    max_rank = min(rank, *error.shape)
    # Twice the rank and four iterations are within 0.1% of the full decomposition, in a hundredth of its time.
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        u, s, v = torch.svd_lowrank(error * sizes, q=min(2 * rank, *error.shape), niter=4)
    root = (s[:max_rank] / scaling).sqrt()
    lora_a = error.new_zeros(rank, error.shape[1])
    lora_b = error.new_zeros(error.shape[0], rank)
    lora_a[:max_rank] = root[:, None] * v.T[:max_rank] / sizes
    lora_b[:, :max_rank] = u[:, :max_rank] * root
    return lora_a, lora_b


def quantized_layers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the quantised layers among `layers`, by path.

    Raises:
        MethodError: no layer is quantised.
    """
    quantized = {path: layer for path, layer in layers.items() if is_quantized(layer)}
    if not quantized:
        raise MethodError(
            "init: qera starts from the quantisation error of the base, and no target layer is quantised; open the "
            "base with quantization, or leave init out"
        )
    return quantized


def quantization_errors(
    layers: Mapping[str, nn.Module], original: Callable[[], nn.Module] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the path and the quantisation error of each layer, (out_features, in_features), in fp32 on the CPU.

    Args:
        layers: quantised layers, by their paths in the model.
        original: function that opens the model without quantisation.

    Raises:
        MethodError: there is no such function, or the original has other layers.
    """
    if original is None:
        raise MethodError("init: qera needs the base without quantisation; use peftly.attach")
    original_modules = dict(original().named_modules())
    for path, layer in layers.items():
        if path not in original_modules:
            raise MethodError(f"init: qera: the original of this base has no layer {path}; open it with load_base")
        original_layer: Any = original_modules[path]
        # The weight of a Conv1D is (in_features, out_features).
        is_transposed = isinstance(original_layer, Conv1D)
        weight = original_layer.weight.T if is_transposed else original_layer.weight
        yield path, weight.detach().float() - dequantized_weight(layer, torch.float32).cpu()


def typical_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], examples: Sequence[EncodedExample]
) -> dict[str, Tensor]:
    """Return the root mean square of each input of linear layers, (in_features,), on the CPU, by path.

    Args:
        model: a transformers model.
        layers: linear layers of the model, by path.
        examples: training examples, of which some are passed through the model.

    Raises:
        MethodError: there are no examples, or the model does not call one of the layers.
    """
    if not examples:
        raise MethodError("init: qera needs training examples: attach(..., examples=data.train.encoded)")
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add_squares(path: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().float().flatten(0, -2)
        sums[path] = sums.get(path, 0) + x.square().sum(0)
        counts[path] += len(x)

    handles = [layer.register_forward_pre_hook(partial(add_squares, path)) for path, layer in layers.items()]
    try:
        for inputs in _calls(model, examples):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    not_called = [path for path in layers if path not in sums]
    if not_called:
        raise MethodError(f"init: qera: the model does not call {not_called[0]} on these examples")
    return {path: (total / counts[path]).sqrt().cpu() for path, total in sums.items()}


def _calls(model: Any, examples: Sequence[EncodedExample]) -> Iterator[dict[str, Tensor]]:
    """Yield the arguments of the calls: one example at a time, without padding, evenly spread over the examples."""
    tokens = sum(token_counts(examples))
    with evaluation_mode(model):
        for example in examples[:: max(1, tokens // CALIBRATION_TOKENS)]:
            inputs = {name: tensor.to(model.device) for name, tensor in collate([example], pad_id=0).items()}
            inputs.pop("prompt_positions", None)
            if not model.config.is_encoder_decoder:
                del inputs["labels"]
            yield inputs
