"""Loss scaling for fp16 (arXiv:1710.03740), where small gradients would be rounded to 0."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler

__all__ = ["LossScale"]

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Steps without an overflow after which the scale doubles."""


class LossScale(GradScaler):
    """A `GradScaler` for steps that are repeated, not skipped, after an overflow.

    The scale is a power of 2, so that scaling and unscaling do not round. It halves after an overflow, and doubles
    after `GROWTH_INTERVAL` steps without one. For dtypes other than fp16 the scaler is disabled and changes nothing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the scaler.

        Args:
            device: device of the loss.
            dtype: dtype in which the model computes.
        """
        enabled = dtype == torch.float16
        super().__init__(device.type, init_scale=INITIAL_SCALE, growth_interval=GROWTH_INTERVAL, enabled=enabled)

    def unscale_all(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Unscale the gradients of a step, and update the scale.

        Args:
            optimizers: optimizers of all parameters that have gradients.

        Returns:
            False if gradients overflowed and the step has to be repeated with the smaller scale. At a scale of 1 or
            less the scale is not the cause, so the result is True and the gradients are not finite.
        """
        if not self.is_enabled():
            return True
        scale = self.get_scale()
        for optimizer in optimizers:
            self.unscale_(optimizer)
        self.update()
        return scale <= 1 or self.get_scale() >= scale

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        # GradScaler refuses fp16 gradients because an unscaled one may be rounded to 0. Parameters in fp16 can be
        # trained here all the same, and their gradients are no larger without a scaler.
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)
