"""Offload: rows live in the host's memory and visit the device a layer at a time (as transformers' offloaded cache does).

Nothing is left out: a decode step reads every row, and answers are those of the full cache. While a layer attends, the next
one's rows are on their way. On a machine without a GPU the host's memory is the device's: nothing moves, and what is left of
the method is its limit.

`limit` is the memory that the host may spend on one cache; what does not fit is refused with the figure, not evicted: name a
compression method in the recipe to hold less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvledger.methods.reader import Reader, at_least
from kvledger.recipe import Row, register


@register(Row("offload", "loading", "all", "-", "-", "rows live on the host; each layer's are fetched ahead of it"))
@dataclass(frozen=True, kw_only=True)
class Offload(Reader):
    """limit: bytes that the rows of one cache may take on the host (0: any number)."""

    limit: int = 0

    host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, "the host's bytes, where 0 sets no limit,", limit=self.limit)

    def allow(self, held: int) -> None:
        if self.limit and held > self.limit:
            raise ValueError(
                f"the rows take {held:,} bytes, and offload(limit={self.limit}) allows no more than {self.limit:,}: raise the "
                "limit, or drop rows by a compression method"
            )
