"""RetrievalAttention (Liu et al., 2024, arXiv 2409.10516; code MIT): read the rows whose keys a vector index finds.

The first `sinks` and the last `window` tokens are always read (§3.4: their static pattern, 128 and 512); of the others, each
query head reads the k with the largest q·k. index="exact" compares with every key and is the reference; "faiss" asks an
inverted file of FAISS (`pip install 'kvledger[retrieval]'`), of which `probes` lists are searched. k = 2,000 is SCBench's.

A KV head has one index. Each of its G query heads looks for k rows of its own, and all G attend to whatever any of them has
found. Deviations: the paper's graph index, built from the prompt's queries, is FAISS's inverted file over keys; rows join
it `window` at a time, so that with it the window grows up to twice its size; all rows found are attended to on one device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.choose import padded, spans_of, top_k
from kvledger.cache.index import logits
from kvledger.cache.neighbours import Neighbours, library
from kvledger.methods.reader import Choice, Look, Reader, at_least
from kvledger.recipe import Row, nearest, register

SEARCHES = ("exact", "faiss")


@register(
    Row(
        "retrieval_attention",
        "loading",
        "head",
        "vector index",
        "arXiv 2409.10516",
        "reads the rows that a search finds",
    )
)
@dataclass(frozen=True, kw_only=True)
class RetrievalAttention(Reader):
    """k: rows that each query head looks for. sinks, window: first and last tokens that are always read. index: "exact" or
    "faiss". probes: lists of FAISS's inverted file that are searched. dense: first layers that read all."""

    k: int = 2000
    sinks: int = 128
    window: int = 512
    index: str = "exact"
    probes: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, "each query looks for a row, and the newest is always read: it", k=self.k, window=self.window)
        at_least(1, "a search takes a list: it", probes=self.probes)
        at_least(0, "a number of rows", sinks=self.sinks)
        if self.index not in SEARCHES:
            raise ValueError(f"index={self.index!r} is unknown{nearest(self.index, SEARCHES)}")
        if self.index == "faiss":
            library()

    def open(self) -> Neighbours | None:
        return Neighbours(self.window, self.probes) if self.index == "faiss" else None

    def choose(self, look: Look) -> Choice | None:
        known = [
            n - self.window if look.index is None else look.index.known[s] for s, n in zip(look.segments, look.lengths)
        ]
        middle = [max(0, n - self.sinks) for n in known]
        if max(middle) <= self.k:
            return None
        found, nbytes = self._exact(look, middle) if look.index is None else self._asked(look, max(middle))
        column, until, lengths = (
            torch.arange(max(look.lengths)),
            torch.tensor(known)[:, None],
            torch.tensor(look.lengths),
        )
        mask = ((column < self.sinks) | (column >= until)) & (column < lengths[:, None])
        mask[:, self.sinks : self.sinks + max(middle)] |= found
        return Choice(spans_of(mask, look.arena, look.segments), nbytes)

    def _asked(self, look: Look, most: int) -> tuple[Tensor, int]:
        """As `_exact`, of FAISS's answer."""
        mask, nbytes = look.index.search(look.q, look.segments, self.k, self.sinks)
        return mask[:, self.sinks : self.sinks + most], nbytes

    def _exact(self, look: Look, middle: list[int]) -> tuple[Tensor, int]:
        """Which of the `middle[i]` rows behind the sinks any query head looks for, [S, M], and the bytes of their keys."""
        scores = padded(products(look, self.sinks, middle), middle, max(middle))
        return top_k(scores, self.k).any(1), sum(middle) * key_nbytes(look.arena)


def products(look: Look, first: int, counts: list[int]) -> Tensor:
    """q·k·scale [G, n] of `counts[i]` rows of each segment, from row `first` of it on, one segment after the other."""
    places = list(enumerate(zip(look.segments, counts)))
    if type(look.arena) is Arena:
        spans = [x for i, (s, n) in places for x in (i, look.arena.start[s] + first, n)]
        return logits(look.q, look.arena.k, spans, look.scale)
    parts = (
        logits(look.q[i : i + 1], look.arena.span(s, first, first + n)[0], [0, 0, n], look.scale)
        for i, (s, n) in places
    )
    return torch.cat(list(parts), -1)


def key_nbytes(arena: Arena) -> int:
    """Bytes of one row's key, as it is stored; where it is packed, half of the row's."""
    return arena.k.shape[-1] * arena.k.element_size() if type(arena) is Arena else arena.row_nbytes // 2
