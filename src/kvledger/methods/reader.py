"""What a decode step reads of the rows that are stored: the last of a recipe's stages (SCBench's "loading").

A reader is a frozen dataclass.  Every row stays stored; for each new token it chooses, in each layer, the rows that this token
attends to.  Prompts and questions, which come as several tokens, and heads with a window read as they would without it.  The
choice is made for a KV head: its G query heads attend to the same rows, which are read once.  Methods that follow the attention
while decoding (h2o, tova with every=) see weights over what was read.  On a GPU rows are gathered by PyTorch, which shows what
a reader reads and what it answers, and not its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.index import Follows
from kvledger.methods.base import Shape
from kvledger.recipe import Row


@dataclass(frozen=True)
class Look:
    """A decode step in one layer: `q` [S, G, Dk] (after RoPE), the queries of `segments` of the arena, in which the new
    token's rows are the last; `index` is what the reader opened for this layer, up to date."""

    q: Tensor
    segments: Sequence[int]
    arena: Arena
    scale: float
    index: Any = None

    @property
    def lengths(self) -> list[int]:
        """Rows of each of the segments."""
        return [self.arena.length[s] for s in self.segments]


@dataclass(frozen=True)
class Choice:
    """Rows to read, `spans` [n, 3] (segment, first row as the arena counts, rows; of a segment one after the other), and the
    bytes that were read to find them."""

    spans: Tensor
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Frame of every reader. dense: the first so many full-attention layers read everything."""

    dense: int = 0

    row: ClassVar[Row]
    role: ClassVar[str] = "reader"
    host: ClassVar[bool] = False  # rows are held in the host's memory

    def __post_init__(self) -> None:
        if self.dense < 0:
            raise ValueError(f"dense={self.dense} is negative: it is the number of layers that read everything")

    def fit(self, shape: Shape) -> None:
        """ValueError if the reader cannot serve a model of this shape."""

    def open(self) -> Follows | None:
        """An empty index for a layer that is not dense; None if it needs none."""
        return None

    def choose(self, look: Look) -> Choice | None:
        """What this token reads; None for everything. Not asked in the `dense` layers."""
        return None

    def allow(self, held: int) -> None:
        """ValueError if `held` bytes, in all layers, are too many."""


def at_least(least: int, what: str, **options: int) -> None:
    """ValueError if one of the options is below `least`."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name}={value}: {what} must be at least {least}")
