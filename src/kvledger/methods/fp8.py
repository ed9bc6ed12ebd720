"""8-bit floats (e4m3: 3 bits of mantissa; Micikevicius et al., 2022, arXiv 2209.05433), each row with a scale that takes its
largest number to the largest e4m3, 448. Engines often use one scale for a whole layer, found beforehand, or 1."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.formats import Fp8
from kvledger.methods.format import Format
from kvledger.recipe import Row, register


@register(
    Row("fp8", "compression", "format", "-", "arXiv 2209.05433", "8-bit floats (e4m3), a scale per token and head")
)
@dataclass(frozen=True, kw_only=True)
class Fp8Rows(Format):
    def rows(self) -> Fp8:
        return Fp8()
