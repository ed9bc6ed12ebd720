"""Flat buffers in which every segment owns a contiguous run of rows, with its own length and room to grow.

`k` [rows, Dk] and `v` [rows, Dv] are all that a plain `Ragged` has; an `Arena` adds what is known of each row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Self
from weakref import WeakMethod

import torch
from torch import Tensor

FEW = 64  # tokens, or one in so many: a question or an answer, and no chunk of a context


class Ragged:
    """`segments` runs of rows: segment `s` owns `start[s] : start[s] + length[s]` of every buffer, and `capacity[s]` rows are
    its own to fill.  `watch(bytes)` is told the bytes held at each change, the short moment in which an old and a new buffer
    both live included."""

    names: tuple[str, ...] = ("k", "v")  # of the buffers; those that are None do not exist

    def __init__(self, segments: int, watch: Callable[[int], None] = lambda held: None):
        self.watch = watch
        self.k = torch.empty(0, 0)
        self.v = torch.empty(0, 0)
        self.start = [0] * segments
        self.length = [0] * segments
        self.capacity = [0] * segments
        self.shared = False  # buffers that another reads too are copied before they are written

    @property
    def watch(self) -> Callable[[int], None]:
        return self._watch

    @watch.setter
    def watch(self, watch: Callable[[int], None]) -> None:
        """A method is held weakly: its object holds the buffers, and they shall be free as soon as it is let go."""
        method = WeakMethod(watch) if isinstance(watch, MethodType) else None

        def tell(held: int) -> None:
            alive = None if method is None else method()
            if alive is not None:
                alive(held)

        self._watch = watch if method is None else tell

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {name: x for name in self.names if (x := getattr(self, name)) is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return list(self.buffers.values())

    @property
    def nbytes(self) -> int:
        """Bytes held, read from the tensors, slack included."""
        return sum(x.nbytes for x in self.tensors)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in all buffers."""
        return sum(x.element_size() * x.shape[1:].numel() for x in self.buffers.values())

    def read_nbytes(self, spans: Tensor) -> int:
        """Bytes of the rows of `spans` [n, 3]: segment, first row in the buffers, rows."""
        return int(spans[:, 2].sum()) * self.row_nbytes

    @property
    def alive_nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_nbytes

    @property
    def rows(self) -> int:
        """Rows alive, over all segments."""
        return sum(self.length)

    def segment(self, s: int, tail: int | None = None) -> slice:
        """Rows of segment `s` in the buffers; only the last `tail` of them if given."""
        end = self.start[s] + self.length[s]
        return slice(end - (self.length[s] if tail is None else tail), end)

    def flat(self, segments: Sequence[int]) -> Tensor:
        """Row numbers of all rows of `segments`, one after the other."""
        spans = [torch.arange(self.segment(s).start, self.segment(s).stop) for s in segments]
        return torch.cat(spans).to(self.k.device)

    def reserve(self, new: dict[str, Tensor], added: Sequence[int]) -> None:
        """Make room for `added[s]` rows. Reading reserves just what it needs; single tokens, and questions behind long
        contexts, leave slack for those that follow, so that regrowing is rare."""
        if not any(self.capacity):
            for name, x in new.items():
                setattr(self, name, x.new_empty(0, *x.shape[3:]))
        wanted = [n + more for n, more in zip(self.length, added)]
        if all(w <= c for w, c in zip(wanted, self.capacity)) and not self.shared:
            return
        slack = [max(16, w // 64) if max(added) <= max(1, min(FEW, w // FEW)) else 0 for w in wanted]
        if len(set(self.length)) == 1:
            slack = [max(slack)] * len(slack)
        self.move(None, self.length, [w + extra for w, extra in zip(wanted, slack)])

    def put(self, new: dict[str, Tensor], added: Sequence[int], valid: Tensor | None) -> None:
        """Write `new` [B, H, T, ...] behind the segments, where there is room; `valid` [B, T] says which of them."""
        one = valid is None and all(n == 1 for n in added)
        self._put_one(new) if one else self._put_spans(new, added, valid)
        self.length = [n + more for n, more in zip(self.length, added)]

    def _put_one(self, new: dict[str, Tensor]) -> None:
        """One row each: a few calls, however many segments."""
        rows = torch.tensor([a + n for a, n in zip(self.start, self.length)], device=self.k.device)
        for name, x in new.items():
            getattr(self, name).index_copy_(0, rows, x.flatten(0, 2))

    def _put_spans(self, new: dict[str, Tensor], added: Sequence[int], valid: Tensor | None) -> None:
        heads = new["k"].shape[1]
        for s, (a, n, more) in enumerate(zip(self.start, self.length, added)):
            for name, x in new.items():
                rows = x[s // heads, s % heads]
                getattr(self, name)[a + n : a + n + more] = (
                    rows if valid is None else rows[valid[s // heads].to(x.device)]
                )

    def fork(self, watch: Callable[[int], None] = lambda held: None) -> Self:
        """A second one with the same rows. The buffers are shared until one of the two writes."""
        twin = copy.copy(self)
        twin.watch = watch
        twin.start, twin.length, twin.capacity = list(self.start), list(self.length), list(self.capacity)
        self.shared = twin.shared = True
        return twin

    def move(self, rows: Tensor | None, length: Sequence[int], capacity: Sequence[int]) -> None:
        """Copy to fresh buffers with the given lengths and capacities: all that is alive, or the chosen flat `rows`, which
        then fill the buffers."""
        start = starts(capacity)
        for name, buffer in self.buffers.items():
            fresh = buffer.new_empty(sum(capacity), *buffer.shape[1:])
            self.watch(self.nbytes + fresh.nbytes)
            if rows is not None:
                torch.index_select(buffer, 0, rows, out=fresh)
            else:
                for old, new, n in zip(self.start, start, length):
                    fresh[new : new + n] = buffer[old : old + n]
            setattr(self, name, fresh)
        self.start, self.length, self.capacity = start, list(length), list(capacity)
        self.shared = False
        self.watch(self.nbytes)


def starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several runs begins, one after the other."""
    out = [0] * len(lengths)
    for s in range(1, len(lengths)):
        out[s] = out[s - 1] + lengths[s - 1]
    return out
