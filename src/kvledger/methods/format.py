"""A format: in which form rows are stored. A part of a recipe beside any compression method, `snapkv(keep=0.3) + int8`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kvledger.cache.arena import Arena
from kvledger.cache.formats import RowFormat
from kvledger.cache.packed import PackedArena
from kvledger.methods.base import Shape
from kvledger.recipe import Row


@dataclass(frozen=True, kw_only=True)
class Format:
    """Frame of every format whose rows each stand for themselves (`rows`)."""

    row: ClassVar[Row]
    role: ClassVar[str] = "format"
    seals: ClassVar[bool] = False  # rows change their form after they were stored, so that going back needs a copy

    def rows(self) -> RowFormat:
        """How a row is packed."""
        raise NotImplementedError

    def arena(self, batch: int, heads: int, watch: Callable[[int], None]) -> Arena:
        """An empty store of one layer."""
        return PackedArena(self.rows(), batch, heads, watch)

    def fit(self, shape: Shape) -> None:
        """ValueError if rows of this model cannot be packed."""
        self.rows().check(shape.dim)


def check_bits(name: str, bits: int, known: tuple[int, ...]) -> None:
    """ValueError for a number of bits that `name` does not have."""
    if bits not in known:
        raise ValueError(f"bits={bits}: {name} stores rows in {' or '.join(map(str, known))} bits")
