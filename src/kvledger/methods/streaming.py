"""StreamingLLM (Xiao et al., 2023, arXiv 2309.17453; code MIT): attention sinks and the most recent rows.

Deviations: the window is a fraction of what has been read (`keep`), so that it can be compared with other methods, instead
of a fixed size; kept keys stay at their true positions (the original numbers them anew inside the cache).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(
    Row("streaming", "compression", "layer", "-", "arXiv 2309.17453", "first tokens (sinks) and the most recent ones")
)
@dataclass(frozen=True, kw_only=True)
class Streaming(Method):
    """sinks: how many of the first tokens stay for good."""

    sinks: int = 4

    among: ClassVar[str] = "all"  # a sliding window forgets rows of earlier chunks, too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} is negative")

    def score(self, view: View) -> Tensor:
        recency = view.positions.float()
        recency[view.positions < self.sinks] = float("inf")
        return recency.expand(view.shape)
