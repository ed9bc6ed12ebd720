"""Approximate search for the keys of largest inner product: FAISS's inverted file, one for each segment of an arena.

FAISS is an extra and imported when it is asked for. Rows join an index in lots while decoding; branches share an index until
one of them adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.arena import Arena

POINTS = 39  # a list should be trained on as many at the least, says FAISS


def library() -> Any:
    """FAISS. ValueError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "index='faiss' needs FAISS: pip install 'kvledger[retrieval]', or take index='exact'"
        ) from error
    return faiss


class Neighbours:
    """Of segment `s`, the rows `0 : known[s]`; the others, `lot` to twice as many, are not in it."""

    def __init__(self, lot: int, probes: int):
        self.lot, self.probes = lot, probes
        self.files: list[Any] = []
        self.known: list[int] = []
        self.gone: list[int] = []  # rows dropped from each segment when it was last looked at
        self.mine: list[bool] = []  # whether no branch shares it

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, their numbers and the lists' centres."""
        return sum((x.ntotal + x.nlist) * x.d * 4 + x.ntotal * 8 for x in self.files if x is not None)

    def update(self, arena: Arena, segments: Sequence[int]) -> None:
        """Add the rows of `segments` that have left the window, once they are enough."""
        if not self.files:
            n = len(arena.length)
            self.files, self.known, self.gone, self.mine = [None] * n, [0] * n, [0] * n, [True] * n
        for s in segments:
            gone, due = arena.seen[s // arena.heads] - arena.length[s], arena.length[s] - self.lot
            if gone != self.gone[s]:
                self.files[s], self.known[s], self.gone[s], self.mine[s] = None, 0, gone, True
            if due > self.known[s] and (not self.known[s] or due >= self.known[s] + self.lot):
                self._add(s, _array(arena.span(s, self.known[s], due)[0]))
                self.known[s] = due

    def _add(self, s: int, keys: Any) -> None:
        faiss = library()
        if self.files[s] is None:
            n, dim = keys.shape
            lists = max(1, min(int(4 * n**0.5), n // POINTS))
            self.files[s] = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
            self.files[s].train(keys)
        elif not self.mine[s]:
            self.files[s] = faiss.clone_index(self.files[s])
        self.mine[s] = True
        self.files[s].add(keys)

    def search(self, q: Tensor, segments: Sequence[int], k: int, first: int) -> tuple[Tensor, int]:
        """For each query of `q` [S, G, D], the k rows from row `first` on whose keys have the largest product with it, fewer if
        FAISS finds fewer: mask [S, most known] over a segment's rows, any of its G queries' counting. And the bytes of
        centres and keys that the queries were compared with."""
        mask, nbytes = torch.zeros(len(segments), max(self.known), dtype=torch.bool), 0
        stats = library().cvar.indexIVF_stats
        for i, s in enumerate(segments):
            if (file := self.files[s]) is not None:
                stats.reset()
                file.nprobe = self.probes
                found = torch.from_numpy(file.search(_array(q[i]), min(k + first, file.ntotal))[1])
                fits = found >= first  # and not -1, which is none
                mask[i, found[fits & (fits.cumsum(-1) <= k)]] = True
                nbytes += (file.nlist * len(found) + stats.ndis) * file.d * 4
        return mask, nbytes

    def cut(self, arena: Arena) -> None:
        """Begin anew where rows of an index were taken back."""
        for s, n in enumerate(self.known):
            if n > arena.length[s]:
                self.files[s], self.known[s], self.mine[s] = None, 0, True

    def select(self, segments: Sequence[int]) -> None:
        """Segment `i` has become the old `segments[i]`."""
        if self.files:
            for name in ("files", "known", "gone"):
                setattr(self, name, [getattr(self, name)[s] for s in segments])
            self.mine = [False] * len(self.files)

    def fork(self) -> Neighbours:
        twin = Neighbours(self.lot, self.probes)
        twin.files, twin.known, twin.gone = list(self.files), list(self.known), list(self.gone)
        self.mine, twin.mine = [False] * len(self.mine), [False] * len(self.mine)
        return twin


def _array(x: Tensor) -> Any:
    return x.float().cpu().contiguous().numpy()
