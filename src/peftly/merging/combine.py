"""Combination of several LoRA adapters to one: their exact weighted sum, or its best approximation of lower rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from peftly.adapters import active_adapters, attach, attached, check_weightable, set_adapters
from peftly.errors import MethodError
from peftly.injection import short_names
from peftly.methods import LoRA

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["best_approximation", "check_method", "combine", "left_out"]

Factors = tuple[Tensor, Tensor]
"""A, (rank, in_features), and B, (out_features, rank), of an update B A."""


def combine(
    model: PreTrainedModel,
    weights: Mapping[str, float],
    *,
    name: str,
    method: Literal["linear", "svd"] = "linear",
    rank: int | None = None,
) -> PreTrainedModel:
    """Attach the weighted sum of several LoRA adapters as a new LoRA adapter, and activate it instead of them.

    The adapters may have different layers, ranks and scalings. They stay attached, but inactive.

    Args:
        model: model with the adapters.
        weights: weight of each adapter by name: `{"a": 0.7, "b": 0.3}`.
        name: name of the new adapter.
        method: "linear" concatenates the factors, so the sum is exact and the rank is the sum of the ranks; "svd"
            computes the best approximation of the sum with rank `rank`, layer by layer.
        rank: rank for "svd"; None: the largest rank of the adapters.

    Returns:
        The same model.

    Raises:
        MethodError: an adapter cannot be added (another method, or trained biases or modules), the model already has an
            adapter with this name, or `rank` does not fit `method`.
    """
    check_method(method, rank)
    check_weightable(model, weights)
    layers = _weighted_factors(model, weights)
    if method == "svd":
        max_rank = rank or max(len(layer.lora_a) for source in weights for _, layer in _targets(model, source).values())
        layers = {path: best_approximation(*factors, max_rank) for path, factors in layers.items()}
    still_active = [other for other in active_adapters(model) if other not in weights]
    attach(model, _config(model, {path: len(lora_a) for path, (lora_a, _) in layers.items()}), name=name)
    with torch.no_grad():
        for path, (_, layer) in _targets(model, name).items():
            layer.load_factors(*layers[path])
    return set_adapters(model, *still_active, name)


def check_method(method: str, rank: int | None) -> None:
    """Check the arguments of `combine`.

    Raises:
        MethodError: the method does not exist, or `rank` does not fit it.
    """
    if method not in ("linear", "svd") or (rank is not None and (method == "linear" or rank < 1)):
        raise MethodError(f"method is linear, or svd with a rank of at least 1; got {method!r} with rank={rank}")


def best_approximation(lora_a: Tensor, lora_b: Tensor, rank: int) -> Factors:
    """Return the factors of the best approximation of `lora_b lora_a` with a given rank, in the Frobenius norm.

    With B = Q R and Aᵀ = P S the product is Q (R Sᵀ) Pᵀ, so its singular values are those of the small matrix R Sᵀ. The
    product itself is never computed.

    Args:
        lora_a: (inner, in_features).
        lora_b: (out_features, inner).
        rank: rank of the result; lower where the product has fewer singular values.

    Returns:
        (rank, in_features) and (out_features, rank), each scaled with the square roots of the singular values.
    """
    q, r = torch.linalg.qr(lora_b.double())
    p, s = torch.linalg.qr(lora_a.double().T)
    u, values, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = values[:rank].sqrt()
    approximate_a = root[:, None] * (v[:rank] @ p.T)
    approximate_b = (q @ u[:, :rank]) * root
    return approximate_a.to(lora_a.dtype), approximate_b.to(lora_b.dtype)


def left_out(model: PreTrainedModel, weights: Mapping[str, float], name: str) -> float:
    """Return the relative error of a combined adapter, ‖sum - adapter‖ / ‖sum‖ over all layers.

    Args:
        model: model with all adapters.
        weights: weight of each adapter in the sum.
        name: name of the combined adapter.
    """
    sums, combined = _weighted_factors(model, weights), _weighted_factors(model, {name: 1.0})
    error = sum(
        _squared_norm(torch.cat([lora_a, combined[path][0]]), torch.cat([lora_b, -combined[path][1]], 1))
        for path, (lora_a, lora_b) in sums.items()
    )
    norm = sum(_squared_norm(*factors) for factors in sums.values())
    return math.sqrt(error / norm) if norm else 0.0


def _squared_norm(lora_a: Tensor, lora_b: Tensor) -> float:
    """Return ‖B A‖² without computing the product."""
    lora_a, lora_b = lora_a.double(), lora_b.double()
    return max(0.0, float(((lora_b.T @ lora_b) * (lora_a @ lora_a.T)).sum()))


def _weighted_factors(model: PreTrainedModel, weights: Mapping[str, float]) -> dict[str, Factors]:
    """Return the concatenated factors of the weighted sum for each adapted layer, with scaling 1."""
    factors: dict[str, list[Factors]] = {}
    for name, weight in weights.items():
        for path, (_, layer) in _targets(model, name).items():
            lora_a, lora_b = layer.factors()
            factors.setdefault(path, []).append((lora_a.detach(), weight * layer.scaling * lora_b.detach()))
    return {
        path: (torch.cat([a for a, _ in of_layer]), torch.cat([b for _, b in of_layer], 1))
        for path, of_layer in factors.items()
    }


def _targets(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Return the adapted layers of an adapter by path: the layer of the base and its layer adapter."""
    adapter: Any = attached(model)[name]
    targets: dict[str, Any] = adapter.targets()
    return targets


def _config(model: PreTrainedModel, ranks: Mapping[str, int]) -> LoRA:
    """Return the settings of a LoRA adapter with the given rank of each layer and a scaling of 1."""
    (common, _), *_ = Counter(ranks.values()).most_common(1)
    others = {path: rank for path, rank in ranks.items() if rank != common}
    return LoRA(
        rank=common,
        alpha=float(common),
        target_modules=tuple(short_names(model, list(ranks))),
        rank_pattern=others,
        alpha_pattern={path: float(rank) for path, rank in others.items()},
        modules_to_save=(),
    )
