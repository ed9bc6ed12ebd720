"""CriticalKV (Feng et al., 2025, arXiv 2502.03805; code MIT): what a row does to the layer's output, not only who looks at it.

Two stages (§4, algorithm 1): `first_stage_ratio` of a head's rows go to the most attended; the rest to the largest attention
times ‖W_o v‖₁, the L1 norm of the value after the output projection. Scores are SnapKV's; with allocator="heads" the heads
first share the budget by those scores alone, as AdaKV does, and each head then runs the two stages (Critical-AdaKV).

Deviations: attention and norm are each the mean over the queries of a KV head, as in NVIDIA's kvpress (Apache-2.0); rows that
stay in any case (the window's) are outside both stages. With allocator="layers" each head's first stage takes its even share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.allocate import shares
from kvledger.methods.base import View
from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Row, register

NUMBERS_AT_ONCE = {
    "cpu": 1 << 18
}  # of projected values: rows go through the projection in blocks that fit a core's cache


@register(
    Row(
        "criticalkv",
        "compression",
        "head",
        "last queries, W_o",
        "arXiv 2502.03805",
        "attention times the value's projected norm",
    )
)
@dataclass(frozen=True, kw_only=True)
class CriticalKV(SnapKV):
    """epsilon: added to the attention before it weighs a value. first_stage_ratio: fraction chosen by attention alone.
    floor: with allocator="heads", the fraction of its even share that no head can lose."""

    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5
    floor: float = 0.2  # type: ignore[misc]

    needs: ClassVar[tuple[str, ...]] = ("output",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon < 0:
            raise ValueError(f"epsilon={self.epsilon} is negative: it is added to attention weights")
        for name in ("first_stage_ratio", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1]: it is a fraction of the budget")

    def score(self, view: View) -> Tensor:
        return super().score(view) / max(1, view.queries.shape[2])  # a mean, so that epsilon has its meaning

    def guarded(self, view: View) -> Tensor:
        votes = super().guarded(view)
        return self._staged(votes, torch.full((len(votes),), view.budget), view) if self.deferred else votes

    def select(self, view: View) -> Tensor:
        votes = self.guarded(view)
        counts = (self.allocate(votes, view) & view.stored).sum(-1)
        return shares(self._staged(votes, counts, view), counts) & view.stored

    def _staged(self, votes: Tensor, counts: Tensor, view: View) -> Tensor:
        """`votes` with the first stage's choice of a head's `counts` [H] rows at +inf, the others weighed by their values."""
        fixed = (votes == torch.inf).sum(-1)
        free = (counts.to(fixed.device) - fixed).clamp(min=0)
        first = shares(votes, fixed + (self.first_stage_ratio * free).int())
        weighed = (votes + self.epsilon) * projected_norm(view)
        return weighed.masked_fill(first, torch.inf).masked_fill(votes == -torch.inf, -torch.inf)


def projected_norm(view: View) -> Tensor:
    """‖v W_o‖₁ of each row, mean over the query heads of its KV head: [H, N] float32."""
    assert view.output is not None
    H, G, _, E = view.output.shape
    norms = torch.zeros(view.shape, device=view.values.device)
    block = max(1, NUMBERS_AT_ONCE.get(norms.device.type, 1 << 25) // E)
    for h in range(H):
        for g in range(G):
            weight = view.output[h, g].float()
            for n in range(0, norms.shape[1], block):
                norms[h, n : n + block] += (view.values[h, n : n + block].float() @ weight).abs_().sum(-1) / G
    return norms
