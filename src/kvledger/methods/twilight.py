"""Twilight (Lin et al., 2025, arXiv 2502.02770; code tsinghua-ideal/Twilight): read as many rows as the attention needs.

A selector passes on a generous number of pages (Quest's bounds, 8,192 rows as in the authors' settings); a pruner estimates the
attention weights of their rows from a copy of the keys in 4 bits, and keeps the fewest rows whose weights reach p (§4.2), for
each query head. p = 0.85 and two dense layers are the authors'. Rows of the page that is not yet full have no copy: their
keys are read. The weights that are used are exact.

The G query heads of a KV head are pruned each on its own, and all attend to the union. Deviations: the threshold is found by
sorting, not by bisection, so that the rows are the fewest; with pages=0 every page is passed on, and p = 1 reads all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.choose import spans_of, top_k, top_p
from kvledger.cache.estimate import coded, estimated
from kvledger.cache.index import Index
from kvledger.methods.base import Shape
from kvledger.methods.quest import bounds_read, page_scores
from kvledger.methods.reader import Choice, Look, Reader, at_least
from kvledger.methods.retrieval_attention import key_nbytes, products
from kvledger.recipe import Row, register


@register(
    Row(
        "twilight",
        "loading",
        "head",
        "int4 keys",
        "arXiv 2502.02770",
        "reads the fewest rows that weigh p",
    )
)
@dataclass(frozen=True, kw_only=True)
class Twilight(Reader):
    """p: estimated attention weight that is read, in (0, 1]. pages: how many are passed on to the estimate (0: all). size:
    rows of a page. dense: first layers that read all."""

    p: float = 0.85
    pages: int = 512
    size: int = 16
    dense: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p} is outside (0, 1]: it is the attention weight that is to be read")
        at_least(1, "a page holds a row: it", size=self.size)
        at_least(0, "the number of pages, where 0 is all,", pages=self.pages)

    def fit(self, shape: Shape) -> None:
        if shape.dim % 2:
            raise ValueError(f"twilight packs two numbers of a key into a byte, and a head dim of {shape.dim} is odd")

    def open(self) -> Index:
        return Index(self.size, coded)

    def choose(self, look: Look) -> Choice | None:
        passed, nbytes = self._passed(look)
        if self.p == 1 and passed is None:
            return None
        every = [look.index.count[s] for s in look.segments]
        pages = (
            [torch.arange(n) for n in every]
            if passed is None
            else [x[:n].nonzero()[:, 0] for x, n in zip(passed, every)]
        )
        mask, read = self._weighed(look, pages)
        return Choice(spans_of(mask, look.arena, look.segments), nbytes + read)

    def _passed(self, look: Look) -> tuple[Tensor | None, int]:
        """The selector: pages [S, P] that are estimated (None: all), and the bytes of the bounds read."""
        if not self.pages or max(look.lengths) <= self.pages * self.size:
            return None, 0
        return top_k(page_scores(look), self.pages), bounds_read(look)

    def _weighed(self, look: Look, pages: list[Tensor]) -> tuple[Tensor, int]:
        """The pruner: rows [S, N] that any query head needs of the complete `pages` and of the one that is not, and the bytes
        of codes and keys read."""
        mask = torch.zeros(len(pages), max(look.lengths), dtype=torch.bool)
        guesses, rest = (
            estimated(look.q, look.index, look.segments, pages, look.scale),
            [n % self.size for n in look.lengths],
        )
        for i, (n, guess, some) in enumerate(zip(look.lengths, guesses, pages)):
            one = Look(look.q[i : i + 1], look.segments[i : i + 1], look.arena, look.scale)
            last = products(one, n - rest[i], rest[i : i + 1])
            rows = torch.cat(
                [(some[:, None] * self.size + torch.arange(self.size)).flatten(), torch.arange(n - rest[i], n)]
            )
            mask[i, rows[top_p(torch.cat([guess, last], -1), self.p).any(0)]] = True
        codes = sum(x.element_size() * x.shape[1:].numel() for x in look.index.tables[1:])
        return mask, sum(map(len, pages)) * codes + sum(rest) * key_nbytes(look.arena)
