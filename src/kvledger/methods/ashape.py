"""A-shape: each query of a prompt sees the first tokens and a local window (SCBench, Li et al., 2024, arXiv 2412.10319, Table
9; the mask of StreamingLLM, arXiv 2309.17453; code of microsoft/MInference, MIT).

While decoding, and for questions that come later, all rows are read. The paper's sizes are 128 and 4,096; its code's window is
3,968. Nothing is rounded to blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.masks import Band, Choice
from kvledger.methods.pattern import Look, Pattern
from kvledger.recipe import Row, register


@register(
    Row("ashape", "generation", "head", "-", "arXiv 2412.10319", "prompt queries see the first tokens and a window")
)
@dataclass(frozen=True, kw_only=True)
class AShape(Pattern):
    """sinks: first tokens that all queries see. window: tokens up to itself that a query sees."""

    sinks: int = 128
    window: int = 4096

    def __post_init__(self) -> None:
        self.at_least(sinks=0, window=1)

    def choose(self, look: Look) -> Choice:
        return Band(self.sinks, self.window)
