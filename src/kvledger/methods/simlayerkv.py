"""SimLayerKV (Zhang et al., 2024, arXiv 2410.13846): lazy layers, which look at first and last tokens only, keep just those.

A layer's laziness is the attention that the last queries give to the sinks and the recent rows (§4), mean over its heads.
`keep` says how many rows all layers hold together: the laziest layers are cut down first, the least lazy stay whole, and one
layer between them keeps as many of its youngest rows as fit. `threshold` is the paper's own rule instead.

Deviations: the budget, of which the recent rows of a lazy layer take a quarter at most, so that short contexts leave something
for the other layers; with when="chunk" all rows are judged after each chunk, by the attention over those that are left.
Layers within 0.001 of each other count as equally lazy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View, softmax_mass
from kvledger.recipe import Row, register

GRAIN = 1000  # steps of laziness between 0 and 1; inside one step younger rows are worth more


@register(
    Row(
        "simlayerkv",
        "compression",
        "across layers",
        "last queries",
        "arXiv 2410.13846",
        "lazy layers keep sinks and recent rows",
    )
)
@dataclass(frozen=True, kw_only=True)
class SimLayerKV(Method):
    """sinks, local: the first and last rows of a lazy layer. window: how many last queries judge (and stay). threshold: if not
    0, layers lazier than this are cut down and all others keep everything, whatever `keep` below 1 says (the paper: 0.9)."""

    sinks: int = 4  # type: ignore[misc]
    local: int = 1024
    window: int = 32  # type: ignore[misc]
    allocator: str = "layers"
    threshold: float = 0.0

    among: ClassVar[str] = "all"  # a lazy layer's rows of earlier chunks are recent no more

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least one query must judge")
        if self.local < 0:
            raise ValueError(f"local={self.local} is negative")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is outside [0, 1]: it is a share of attention")

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return not self.threshold

    @property
    def deferred(self) -> bool:
        return super().deferred and not self.threshold

    def near(self, view: View) -> Tensor:
        """The rows [H, N] that a lazy layer keeps: sinks, recent ones, the voting queries' own."""
        most = self.local if self.threshold else min(self.local, view.budget // 4)
        young = view.positions >= view.seen - max(most, view.queries.shape[2])
        return ((view.positions < self.sinks) | young) & view.stored

    def laziness(self, view: View) -> float:
        """The share of the last queries' attention that those rows get."""
        mass = softmax_mass(view).mean(1)
        return float((mass * self.near(view)).sum() / mass.sum().clamp(min=1e-9))

    def score(self, view: View) -> Tensor:
        youth = view.positions / max(1, view.seen)
        return (youth - round(self.laziness(view) * GRAIN)) / GRAIN

    def guarded(self, view: View) -> Tensor:
        return super().guarded(replace(view, recent=view.recent | self.near(view)))

    def select(self, view: View) -> Tensor:
        if not self.threshold:
            return super().select(view)
        lazy = self.laziness(view) > self.threshold
        return (self.near(view) | view.recent | view.pinned) & view.stored if lazy else view.stored.clone()
