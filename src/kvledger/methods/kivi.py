"""KIVI (Liu et al., 2024, arXiv 2402.02750; code MIT): keys in 2 or 4 bits per channel, values per token, youngest rows plain.

What is done and where it deviates: `kvledger/cache/grouped.py`. SCBench (arXiv 2412.10319) runs it with 2 bits, group 32 and
residual 32, these defaults; with 16-bit scale and zero that is 3 bits a number, 3/16 of a bfloat16 cache and not the 1/8 stated
there. Its port packs nothing after the prompt; here what gathers is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kvledger.cache.grouped import GroupedArena, check_groups
from kvledger.methods.base import Shape
from kvledger.methods.format import Format, check_bits
from kvledger.recipe import Row, register


@register(
    Row("kivi", "compression", "format", "-", "arXiv 2402.02750", "keys per channel, values per token in 2 or 4 bits")
)
@dataclass(frozen=True, kw_only=True)
class Kivi(Format):
    """bits: 2 or 4; 16 leaves rows as they are, to see what the rest costs. group: tokens that share a key channel's scale, and
    channels that share a token's value scale. residual: youngest rows of a head that stay as they are, at least."""

    bits: int = 2
    group: int = 32
    residual: int = 32

    seals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits("kivi", self.bits, (2, 4, 16))
        if self.group < 8 or self.group & (self.group - 1):
            raise ValueError(f"group={self.group} must be a power of two of at least 8")
        if self.residual < 0:
            raise ValueError(f"residual={self.residual} is negative")

    def arena(self, batch: int, heads: int, watch: Callable[[int], None]) -> GroupedArena:
        return GroupedArena(self.bits, self.group, self.residual, batch, heads, watch)

    def fit(self, shape: Shape) -> None:
        check_groups(shape.dim, shape.dim, self.bits, self.group)
