"""An index over the rows of an arena: a few numbers for each page of rows, kept up to date as rows come and go.

Only complete pages have an entry, so that an entry is made once: while decoding, one a head every `size` tokens.  Rows of a
segment that were dropped since it was last brought up to date begin it anew, without a loop over tokens; what was taken back
is cut off (`cut`).  Like the arena's buffers, the tables are shared between branches until one of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from kvledger.cache import native
from kvledger.cache.arena import Arena
from kvledger.cache.kernels.codes import unpack

Summary = Callable[[Tensor], tuple[Tensor, ...]]  # of pages' keys [n, size, Dk]: tables [n, ...]


class Follows(Protocol):
    """What a layer's index does, whatever is in it."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def update(self, arena: Arena, segments: Sequence[int]) -> None:
        """Know all rows of `segments`."""

    def cut(self, arena: Arena) -> None:
        """The last rows of the arena have just been taken back."""

    def select(self, segments: Sequence[int]) -> None:
        """Segment `i` has become the old `segments[i]`."""

    def fork(self) -> Follows:
        """The same for a branch."""


class Index:
    """Tables of one entry a page of `size` rows; segment `s` owns the entries `start[s] : start[s] + count[s]`, of its rows
    `0 : size · count[s]`."""

    def __init__(self, size: int, summary: Summary):
        self.size, self.summary = size, summary
        self.tables: tuple[Tensor, ...] = ()
        self.start: list[int] = []
        self.count: list[int] = []
        self.capacity: list[int] = []
        self.gone: list[int] = []  # rows dropped from each segment when it was last looked at: they are never fewer
        self.shared = False

    @property
    def nbytes(self) -> int:
        """Bytes held, slack included."""
        return sum(x.nbytes for x in self.tables)

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one page's entry."""
        return sum(x.element_size() * x.shape[1:].numel() for x in self.tables)

    def update(self, arena: Arena, segments: Sequence[int]) -> None:
        """Take in the pages of `segments` that are complete by now."""
        if not self.count:
            self.start, self.count, self.capacity, self.gone = ([0] * len(arena.length) for _ in range(4))
        new = {}
        for s in segments:
            gone, full = arena.seen[s // arena.heads] - arena.length[s], arena.length[s] // self.size
            self.count[s] = min(self.count[s], full) if gone == self.gone[s] else 0
            self.gone[s] = gone
            if full > self.count[s]:
                keys, _ = arena.span(s, self.count[s] * self.size, full * self.size)
                new[s] = self.summary(keys.unflatten(0, (-1, self.size)))
        if new:
            self._reserve(new)
            for s, tables in new.items():
                for table, rows in zip(self.tables, tables):
                    table[self.start[s] + self.count[s] :][: len(rows)] = rows
                self.count[s] += len(tables[0])

    def _reserve(self, new: dict[int, tuple[Tensor, ...]]) -> None:
        """Room for the new entries, and some slack."""
        added = [len(new[s][0]) if s in new else 0 for s in range(len(self.count))]
        wanted = [n + more for n, more in zip(self.count, added)]
        if all(w <= c for w, c in zip(wanted, self.capacity)) and not self.shared:
            return
        capacity = [w + max(4, w // 64) if w else 0 for w in wanted]
        start = [0, *accumulate(capacity)][:-1]
        some = next(iter(new.values()))
        tables = tuple(x.new_empty(sum(capacity), *x.shape[1:]) for x in some)
        for old, fresh in zip(self.tables, tables):
            for a, b, n in zip(self.start, start, self.count):
                fresh[b : b + n] = old[a : a + n]
        self.tables, self.start, self.capacity, self.shared = tables, start, capacity, False

    def cut(self, arena: Arena) -> None:
        """Forget the pages that the arena, which has just gone back, no longer fills."""
        self.count = [min(n, length // self.size) for n, length in zip(self.count, arena.length)]

    def select(self, segments: Sequence[int]) -> None:
        """Reorder, repeat or drop segments: `i` becomes the old `segments[i]`."""
        if self.count:
            for name in ("start", "count", "capacity", "gone"):
                setattr(self, name, [getattr(self, name)[s] for s in segments])
            self.shared = True  # a repeated segment's entries are those of two

    def fork(self) -> Index:
        """The same index of a branch; the tables are shared until one of the two writes."""
        twin = Index(self.size, self.summary)
        twin.tables, twin.start, twin.count = self.tables, list(self.start), list(self.count)
        twin.capacity, twin.gone = list(self.capacity), list(self.gone)
        self.shared = twin.shared = True
        return twin

    def spans(self, segments: Sequence[int]) -> list[int]:
        """Where the entries of `segments` are, as `logits` takes it: which of them, first entry, entries."""
        return [x for i, s in enumerate(segments) for x in (i, self.start[s], self.count[s])]


def logits(q: Tensor, rows: Tensor, spans: Sequence[int] | Tensor, scale: float) -> Tensor:
    """Dot products of `q` [S, G, D] with `rows` [R, D], times `scale`: [G, n] float over the n rows of the `spans`, three
    numbers each: which of the S, first row, rows. Rows may also be codes of 4 bits (`pack`), taken as whole numbers."""
    coded = rows.dtype == torch.uint8
    if coded and q.dtype != torch.float64:
        q = q.float()
    if native.usable(q, *[q[0] if coded else rows] * 2):
        return native.logits(q, rows, spans, scale)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    found = [q.new_empty(q.shape[1], 0, dtype=wide)]
    flat = spans.tolist() if isinstance(spans, Tensor) else spans
    for s, a, n in zip(flat[::3], flat[1::3], flat[2::3]):
        some = unpack(rows[a : a + n], 4).to(q.dtype) if coded else rows[a : a + n]
        found.append((q[s] @ some.T).to(wide) * scale)
    return torch.cat(found, -1)


def bounds(keys: Tensor) -> tuple[Tensor, ...]:
    """The largest and the smallest of each of the D numbers of pages' keys [n, size, D], side by side: [n, 2·D]."""
    return (torch.cat([keys.amax(1), keys.amin(1)], -1),)


def against_bounds(q: Tensor) -> Tensor:
    """`q` [..., D] such that its product with `bounds` is the largest that it can have with a key of the page: [..., 2·D]."""
    return torch.cat([q.clamp(min=0), q.clamp(max=0)], -1)
