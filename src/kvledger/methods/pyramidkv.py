"""PyramidKV (Cai et al., 2024, arXiv 2406.02069; code MIT): SnapKV's scores, budgets that shrink with depth."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Row, register


@register(Row("pyramidkv", "compression", "layer", "last queries", "arXiv 2406.02069", "SnapKV, less in deeper layers"))
@dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """beta: the last layer's free rows are the mean's over beta."""

    allocator: str = "pyramid"
    beta: int = 20  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise ValueError(
                f"beta={self.beta}: the last layer's share is the mean's over beta, so it must be at least 1"
            )
