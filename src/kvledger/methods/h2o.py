"""H2O (Zhang et al., 2023, arXiv 2306.14048; code MIT): heavy hitters, the rows with most attention so far, and the recent.

Every query of every token adds what it attends to; half of a head's budget are its last rows, the other half those with the
largest sum (§4.2). With `every=1` one row goes at each decode step, as in the original.

Deviations: the sums are the mean over the queries of a KV head and a row is stored once (`heads="query"` keeps a set per query
head, as the paper does); the prompt is read densely and its rows go when it has been read (the paper's own code), or chunk
by chunk. The sums cost a second product of queries and keys, in blocks, since fused attention does not hand them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(
    Row("h2o", "compression", "head", "all queries", "arXiv 2306.14048", "rows with most attention so far, and recent")
)
@dataclass(frozen=True, kw_only=True)
class H2O(Method):
    """recent_share: the fraction of the budget that the last rows get; heavy hitters get the rest."""

    recent_share: float = 0.5

    tally: ClassVar[str] = "mass"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent_share <= 1:
            raise ValueError(f"recent_share={self.recent_share} is outside [0, 1]: it is a fraction of the budget")

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally

    def guarded(self, view: View) -> Tensor:
        young = view.positions >= view.seen - int(self.recent_share * view.budget)
        return super().guarded(replace(view, recent=view.recent | young))
