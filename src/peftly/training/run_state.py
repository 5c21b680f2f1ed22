"""Progress of an adapter's training: counters, the best evaluation and the best weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from peftly.training.callbacks import EvaluationRecord, to_dict

__all__ = ["RunState"]


@dataclass(frozen=True)
class RunState:
    """Progress of an `AdapterJob`.

    The object is immutable and is replaced as a whole, so that an interruption never finds a half-written state.

    Attributes:
        step: number of updates so far.
        after_step_due: whether the saving and the evaluation that follow the last update are still to be done.
        best: best evaluation so far; None before the first one.
        best_weights: trained weights at the best evaluation, by parameter name; None before the first evaluation.
        evaluations_since_best: number of evaluations after the last improvement (`is_improvement`).
        stopped_early: whether `early_stopping_patience` ran out.
        train_loss_sum: sum of the training losses of all targets since the last evaluation.
        train_targets: number of these targets.
        metrics_bytes: size of `metrics.jsonl` in bytes.
        metrics_sha256: hash of these bytes.
        seconds: duration of the whole run; None until the run has finished.
        peak_memory_bytes: largest memory of the process so far; None before the first step.
    """

    step: int = 0
    after_step_due: bool = False
    best: EvaluationRecord | None = None
    best_weights: dict[str, Tensor] | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    train_loss_sum: float = 0.0
    train_targets: int = 0
    metrics_bytes: int = 0
    metrics_sha256: str = ""
    seconds: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over the targets since the last evaluation; None if there was none."""
        return self.train_loss_sum / self.train_targets if self.train_targets else None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors, for a checkpoint."""
        return {**vars(self), "best": None if self.best is None else to_dict(self.best)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Self:
        """Return the state that `to_dict` was called on.

        Args:
            values: result of `to_dict`, possibly read from a checkpoint.
            parameters: trained parameters by name; the best weights are moved to their devices.
        """
        best, weights = values["best"], values["best_weights"]
        if best is not None:
            best = EvaluationRecord(**{key: value for key, value in best.items() if key != "kind"})
        if weights is not None:
            weights = {name: weights[name].to(parameter) for name, parameter in parameters.items()}
        return cls(**{**values, "best": best, "best_weights": weights})
