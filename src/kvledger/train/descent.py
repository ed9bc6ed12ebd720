"""One update of learned parameters, refused where numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor, nn


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter], clip: float) -> None:
    """Step down the gradient of `loss`, cut to the norm `clip` (0: as it is). FloatingPointError if the loss or a gradient is
    not finite; the parameters are then as they were."""
    optimizer.zero_grad(set_to_none=True)
    if not isfinite(float(loss.detach())):
        raise FloatingPointError(f"the loss is {float(loss.detach())}")
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
    if not bool(norm.isfinite()):
        raise FloatingPointError("a gradient is not finite")
    optimizer.step()
