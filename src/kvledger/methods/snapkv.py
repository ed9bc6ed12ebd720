"""SnapKV (Li et al., 2024, arXiv 2404.14469; code CC BY 4.0): the prompt's last queries vote for what stays.

Deviations: the vote is the mean over the queries of a KV head and a row is stored once (`heads="query"` gives the published
behaviour, one set per query head); the budget is a fraction; a budget below the window keeps the last rows of the window.
With when="chunk" this is the chunked eviction of "Cache Me If You Can" (arXiv 2506.17121) §3: each chunk's rows are judged
once, by that chunk's last queries, or by the prompt's ("patched" visibility).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvledger.methods.base import Method, View, window_attention
from kvledger.recipe import Row, register


@register(
    Row("snapkv", "compression", "head", "last queries", "arXiv 2404.14469", "rows that the last queries look at")
)
@dataclass(frozen=True, kw_only=True)
class SnapKV(Method):
    """window: how many last queries vote, and whose rows stay. kernel, pool: smoothing over neighbours, "avg" or "max"."""

    window: int = 32  # type: ignore[misc]
    kernel: int = 5
    pool: str = "avg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least one query must vote")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")
        if self.pool not in ("avg", "max"):
            raise ValueError(f"pool={self.pool!r} is not 'avg' or 'max'")

    def score(self, view: View) -> Tensor:
        return window_attention(view, self.kernel, self.pool)
