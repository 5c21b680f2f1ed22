"""Make one LoRA adapter of several: their weighted sum exactly, or its best approximation of a lower rank."""

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
"""A, (rank, in_features), and B, (out_features, rank), of a change B A."""


def combine(
    model: PreTrainedModel,
    weights: Mapping[str, float],
    *,
    name: str,
    method: Literal["linear", "svd"] = "linear",
    rank: int | None = None,
) -> PreTrainedModel:
    """Put a new LoRA adapter on `model` that is the weighted sum of several; it is on in their place.

    They may differ in their layers, ranks and scalings. They stay on the model, off.

    Args:
        model: a model with these adapters.
        weights: how much of each: `{"a": 0.7, "b": 0.3}`.
        name: what to call the new one.
        method: "linear" puts the factors side by side, so the sum is exact and its rank is that of all together; "svd"
            is the best approximation of that sum, layer by layer, of a given rank.
        rank: for "svd"; None: the largest that one of them has.

    Returns:
        The same model.

    Raises:
        MethodError: one of them is no sum (another method, trained biases or modules), the model has an adapter called
            `name`, or the settings do not go together.
    """
    check_method(method, rank)
    check_weightable(model, weights)
    layers = _weighted_factors(model, weights)
    if method == "svd":
        most = rank or max(len(change.lora_a) for one in weights for _, change in _targets(model, one).values())
        layers = {path: best_approximation(*factors, most) for path, factors in layers.items()}
    on = [one for one in active_adapters(model) if one not in weights]
    attach(model, _config(model, {path: len(lora_a) for path, (lora_a, _) in layers.items()}), name=name)
    with torch.no_grad():
        for path, (_, change) in _targets(model, name).items():
            change.load_factors(*layers[path])
    return set_adapters(model, *on, name)


def check_method(method: str, rank: int | None) -> None:
    """Do nothing if several adapters can be made one like that.

    Raises:
        MethodError: there is no such method, or no such rank of its result.
    """
    if method not in ("linear", "svd") or (rank is not None and (method == "linear" or rank < 1)):
        raise MethodError(f"method is linear, or svd with a rank of at least 1; got {method!r} with rank={rank}")


def best_approximation(lora_a: Tensor, lora_b: Tensor, rank: int) -> Factors:
    """Return the factors of the best approximation of `lora_b lora_a` that has a rank, without ever making that matrix.

    With B = Q R and Aᵀ = P S it is Q (R Sᵀ) Pᵀ, so the singular values are those of the small matrix R Sᵀ.

    Args:
        lora_a: (inner, in_features).
        lora_b: (out_features, inner).
        rank: of the result; it has fewer where there are no more singular values.

    Returns:
        (rank, in_features) and (out_features, rank), each with half of the singular values.
    """
    q, r = torch.linalg.qr(lora_b.double())
    p, s = torch.linalg.qr(lora_a.double().T)
    u, values, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = values[:rank].sqrt()
    approximate_a = root[:, None] * (v[:rank] @ p.T)
    approximate_b = (q @ u[:, :rank]) * root
    return approximate_a.to(lora_a.dtype), approximate_b.to(lora_b.dtype)


def left_out(model: PreTrainedModel, weights: Mapping[str, float], name: str) -> float:
    """Return how far adapter `name` is from the weighted sum that it stands for: ‖difference‖ / ‖sum‖ of all layers."""
    sums, own = _weighted_factors(model, weights), _weighted_factors(model, {name: 1.0})
    rest = sum(
        _squared_norm(torch.cat([lora_a, own[path][0]]), torch.cat([lora_b, -own[path][1]], 1))
        for path, (lora_a, lora_b) in sums.items()
    )
    length = sum(_squared_norm(*factors) for factors in sums.values())
    return math.sqrt(rest / length) if length else 0.0


def _squared_norm(lora_a: Tensor, lora_b: Tensor) -> float:
    """Return ‖B A‖², without ever making that matrix."""
    lora_a, lora_b = lora_a.double(), lora_b.double()
    return max(0.0, float(((lora_b.T @ lora_b) * (lora_a @ lora_a.T)).sum()))


def _weighted_factors(model: PreTrainedModel, weights: Mapping[str, float]) -> dict[str, Factors]:
    """Return for each layer that some adapter changes the factors of all of them side by side, of scaling 1."""
    parts: dict[str, list[Factors]] = {}
    for one, weight in weights.items():
        for path, (_, change) in _targets(model, one).items():
            lora_a, lora_b = change.factors()
            parts.setdefault(path, []).append((lora_a.detach(), weight * change.scaling * lora_b.detach()))
    return {
        path: (torch.cat([a for a, _ in found]), torch.cat([b for _, b in found], 1)) for path, found in parts.items()
    }


def _targets(model: PreTrainedModel, name: str) -> dict[str, Any]:
    adapter: Any = attached(model)[name]
    targets: dict[str, Any] = adapter.targets()
    return targets


def _config(model: PreTrainedModel, ranks: Mapping[str, int]) -> LoRA:
    """Return the settings of a LoRA with such a rank at each layer, and a scaling of 1."""
    (usual, _), *_ = Counter(ranks.values()).most_common(1)
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return LoRA(
        rank=usual,
        alpha=float(usual),
        target_modules=tuple(short_names(model, list(ranks))),
        rank_pattern=others,
        alpha_pattern={path: float(rank) for path, rank in others.items()},
        modules_to_save=(),
    )
