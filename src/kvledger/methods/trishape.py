"""Tri-shape: A-shape, and the last queries of the prompt see everything (SCBench, Li et al., 2024, arXiv 2412.10319 §3; code of
microsoft/MInference, MIT).

The last queries are the prompt's: in chunked reading those of the last chunk, at most as many as it has. The paper's Table 9
has 128 of them, its code 100. In a batch that is padded on the right, each prompt has last queries of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.masks import Band, Choice
from kvledger.methods.ashape import AShape
from kvledger.methods.pattern import Look
from kvledger.recipe import Row, register


@register(
    Row(
        "trishape",
        "generation",
        "head",
        "last queries",
        "arXiv 2412.10319",
        "A-shape, and the last queries see everything",
    )
)
@dataclass(frozen=True, kw_only=True)
class TriShape(AShape):
    """last: queries at the end of the prompt that see all rows."""

    last: int = 128

    def __post_init__(self) -> None:
        self.at_least(sinks=0, window=1, last=0)

    def choose(self, look: Look) -> Choice:
        return Band(self.sinks, self.window, self.last if look.ends else 0)
