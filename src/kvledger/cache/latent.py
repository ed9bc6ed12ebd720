"""An arena of latents (MLA, DeepSeek-V2, arXiv 2405.04434 §2.1): what is kept of a token is one vector for all heads, its
latent and behind it the rotated part of its key. As a key it is all of it, as a value its first `rank` numbers, stored once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kvledger.cache.arena import Arena, Region


@dataclass(frozen=True)
class Narrow:
    """The first `width` numbers of each row of `rows` [n, D]."""

    rows: Tensor
    width: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), self.width))

    def plain(self, rows: slice) -> Tensor:
        return self.rows[rows, : self.width]


class LatentArena(Arena):
    """Keys `k` [rows, rank + rotated]; values are views of them."""

    names = ("k", "position", "tally")

    def __init__(self, rank: int, batch: int, heads: int, watch: Callable[[int], None] = lambda held: None):
        self.rank = rank
        super().__init__(batch, heads, watch)

    @property
    def v(self) -> Tensor:  # type: ignore[override]
        return self.k[:, : self.rank]

    @v.setter
    def v(self, rows: Tensor) -> None:
        """They come and go with the keys."""

    def _form(self, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        return {"k": k}

    @property
    def regions(self) -> list[Region]:
        return [Region(self.k, cast(Any, Narrow(self.k, self.rank)), self.start, self.length)]
