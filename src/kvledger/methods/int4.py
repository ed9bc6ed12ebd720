"""4-bit integers: each row, a token's key or value in one head, has a scale and a zero of its own, 15 steps from its smallest
number to its largest."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.formats import Int4
from kvledger.methods.format import Format
from kvledger.recipe import Row, register


@register(Row("int4", "compression", "format", "-", "-", "4-bit integers, a scale and a zero per token and head"))
@dataclass(frozen=True, kw_only=True)
class Int4Rows(Format):
    def rows(self) -> Int4:
        return Int4()
