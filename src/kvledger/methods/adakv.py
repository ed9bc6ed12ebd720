"""AdaKV (Feng et al., 2024, arXiv 2407.11550; code MIT): SnapKV's scores, the heads of a layer compete for rows.

Deviation: the budget's even share that a head is sure of (`floor`) is 0.2, as in later re-implementations; the paper's code
uses 0.2 and its README 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Row, register


@register(
    Row("adakv", "compression", "across heads", "last queries", "arXiv 2407.11550", "SnapKV, heads compete for rows")
)
@dataclass(frozen=True, kw_only=True)
class AdaKV(SnapKV):
    """floor: the fraction of its even share that no head can lose."""

    kernel: int = 7
    pool: str = "max"
    allocator: str = "heads"
    floor: float = 0.2  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor} is outside [0, 1]")
