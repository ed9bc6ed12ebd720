"""TurboQuant (Zandieh et al., 2025, arXiv 2504.19874): a random rotation, then one codebook for all coordinates. What is done
and what is not: `kvledger/cache/turboquant.py`."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.turboquant import TurboRows
from kvledger.methods.format import Format, check_bits
from kvledger.recipe import Row, register


@register(
    Row("turboquant", "compression", "format", "-", "arXiv 2504.19874", "rotated rows, 3 or 4 bits from one codebook")
)
@dataclass(frozen=True, kw_only=True)
class TurboQuant(Format):
    """bits: of a coordinate, 2, 3 or 4. seed: of the rotation."""

    bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_bits("turboquant", self.bits, (2, 3, 4))

    def rows(self) -> TurboRows:
        return TurboRows(self.bits, self.seed)
