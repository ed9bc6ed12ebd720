"""8-bit integers: each row, a token's key or value in one head, has a scale of its own (per token and head, as in the int8
caches of engines). Rounding costs at most half a step, 1/254 of the row's largest number."""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.cache.formats import Int8
from kvledger.methods.format import Format
from kvledger.recipe import Row, register


@register(Row("int8", "compression", "format", "-", "-", "8-bit integers, a scale per token and head"))
@dataclass(frozen=True, kw_only=True)
class Int8Rows(Format):
    def rows(self) -> Int8:
        return Int8()
