"""How far a training has come, beside its weights and its optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from peftly.training.callbacks import EvaluationRecord, to_dict

__all__ = ["RunState"]


@dataclass(frozen=True)
class RunState:
    """How far a adapter_job has come. Replaced as a whole, so that an interruption finds it whole.

    Attributes:
        step: how many updates were made.
        due: whether what follows the last of them, an evaluation perhaps, is still to be done.
        best: the best evaluation so far.
        best_weights: the weights then.
        waited: evaluations since.
        stopped: whether those were too many.
        told: how many records there are.
        written: bytes of the file of metrics.
        seconds: of the whole run, once it is finished.
    """

    step: int = 0
    due: bool = False
    best: EvaluationRecord | None = None
    best_weights: dict[str, Tensor] | None = None
    waited: int = 0
    stopped: bool = False
    told: int = 0
    written: int = 0
    seconds: float | None = None

    def state(self) -> dict[str, Any]:
        """Return it as `restored` reads it: plain values and tensors."""
        return {**vars(self), "best": None if self.best is None else to_dict(self.best)}

    @classmethod
    def restored(cls, state: Mapping[str, Any], like: Mapping[str, Tensor]) -> Self:
        """Return what `state` was made of, with weights on the devices that those of `like` are on."""
        best, weights = state["best"], state["best_weights"]
        if best is not None:
            best = EvaluationRecord(**{key: value for key, value in best.items() if key != "kind"})
        if weights is not None:
            weights = {name: weights[name].to(tensor) for name, tensor in like.items()}
        return cls(**{**state, "best": best, "best_weights": weights})
