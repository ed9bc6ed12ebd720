"""The store of one layer: keys and values in one buffer each, a contiguous segment per (sequence, KV head).

Segments have their own lengths, so what a method drops in one head is really freed.  Axes, here and everywhere:
`B` batch, `L` layers, `H` KV heads, `G` query heads per KV head, `T` new tokens, `N` rows looked at, `D` head dim,
`S = B·H` segments, segment `s = b·H + h`.  Why one flat buffer and not padding or pages: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvledger.cache import kernels


class Arena:
    """Rows of keys `k` [rows, Dk] and values `v` [rows, Dv]; segment `s` owns `start[s] : start[s] + length[s]`.

    Rows of a segment are in the order of their tokens.  `position` is None while no row was ever dropped (row `i` is token
    `i`); afterwards it holds the token index of each row, counted without padding.  `watch(bytes)` is told the bytes held
    at each change, the short moment in which an old and a new buffer both live included.  `tally` [rows] float32, if a method
    asks for one, is a number of the method's own that moves with each row and is counted with it.
    """

    def __init__(self, batch: int, heads: int, watch: Callable[[int], None] = lambda held: None):
        self.batch, self.heads = batch, heads
        self.watch = watch
        self.k = torch.empty(0, 0)
        self.v = torch.empty(0, 0)
        self.position: Tensor | None = None
        self.tally: Tensor | None = None
        self.start = [0] * (batch * heads)
        self.length = [0] * (batch * heads)
        self.capacity = [0] * (batch * heads)
        self.seen = [0] * batch
        self.shared = False
        self.plan: object = None  # the CUDA reader's work list, good until lengths change other than by appending

    # ---- what is there -------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes held, read from the tensors: keys, values, positions, tallies, slack."""
        return sum(x.nbytes for x in (self.k, self.v, self.position, self.tally) if x is not None)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row: its key, its value and, where there are such, its position and its tally."""
        more = sum(x.element_size() for x in (self.position, self.tally) if x is not None)
        return self.k.element_size() * self.k.shape[-1] + self.v.element_size() * self.v.shape[-1] + more

    @property
    def rows(self) -> int:
        """Rows alive, over all segments."""
        return sum(self.length)

    @property
    def uniform(self) -> bool:
        """All segments have one length and one capacity, so that the buffer is a plain [S, capacity, D] tensor."""
        return len(set(self.length)) == 1 and len(set(self.capacity)) == 1

    def segment(self, s: int, tail: int | None = None) -> slice:
        """Rows of segment `s` in the buffers; only the last `tail` of them if given."""
        end = self.start[s] + self.length[s]
        return slice(end - (self.length[s] if tail is None else tail), end)

    def positions(self, s: int, tail: int | None = None) -> Tensor:
        """Token index of each row of segment `s`, int64, ascending."""
        if self.position is not None:
            return self.position[self.segment(s, tail)].long()
        n = self.length[s]
        return torch.arange(n - (n if tail is None else tail), n, device=self.k.device)

    # ---- append --------------------------------------------------------------------------------------------------

    def append(self, k: Tensor, v: Tensor, valid: Tensor | None = None) -> list[int]:
        """Add `k` [B, H, T, Dk] and `v` [B, H, T, Dv] behind each segment; returns the tokens added per sequence.

        `valid` [B, T] bool marks real tokens; the others (padding) are never stored.
        """
        added = [k.shape[2]] * self.batch if valid is None else [int(n) for n in valid.sum(-1).tolist()]
        if not any(added):
            return added
        self._reserve(k, v, added)
        if valid is None and kernels.usable(self.k):
            from kvledger.cache.kernels.append import append  # late: it needs Triton

            self._widen(max(added))
            append(self, k, v)
        elif k.shape[2] == 1 and all(added):
            self._append_one(k.flatten(0, 2), v.flatten(0, 2))
        else:
            self._append_spans(k, v, added, valid)
        self.length = [n + added[s // self.heads] for s, n in enumerate(self.length)]
        self.seen = [n + added[b] for b, n in enumerate(self.seen)]
        return added

    def _append_one(self, k: Tensor, v: Tensor) -> None:
        """One row `k` [S, Dk], `v` [S, Dv] behind each segment: a few calls, however many segments."""
        self._widen(1)
        rows = torch.tensor([a + n for a, n in zip(self.start, self.length)], device=k.device)
        self.k.index_copy_(0, rows, k)
        self.v.index_copy_(0, rows, v)
        if self.tally is not None:
            self.tally.index_fill_(0, rows, 0.0)
        if self.position is not None:
            seen = torch.tensor(self.seen, dtype=self.position.dtype, device=k.device)
            self.position.index_copy_(0, rows, seen.repeat_interleave(self.heads))

    def _append_spans(self, k: Tensor, v: Tensor, added: list[int], valid: Tensor | None) -> None:
        for s, (a, n) in enumerate(zip(self.start, self.length)):
            b, span = s // self.heads, slice(a + n, a + n + added[s // self.heads])
            for buffer, new in ((self.k, k), (self.v, v)):
                rows = new[b, s % self.heads]
                buffer[span] = rows if valid is None else rows[valid[b].to(rows.device)]
            if self.tally is not None:
                self.tally[span] = 0.0
        if self.position is None:
            return
        self._widen(max(added))
        for b, (seen, n) in enumerate(zip(self.seen, added)):
            tokens = torch.arange(seen, seen + n, device=k.device).to(self.position.dtype)
            for s in range(b * self.heads, (b + 1) * self.heads):
                self.position[self.start[s] + self.length[s] :][:n] = tokens

    def _widen(self, more: int) -> None:
        """Token indices in 32 bits, once 16 are too few for `more` tokens."""
        if self.position is not None and max(self.seen) + more > torch.iinfo(self.position.dtype).max:
            self.position = self.position.to(torch.int32)
            self.watch(self.nbytes)

    def _reserve(self, k: Tensor, v: Tensor, added: list[int]) -> None:
        """Make room. Reading reserves just what it needs; single tokens leave slack, so that regrowing is rare."""
        if self.k.shape[-1] == 0:
            self.k, self.v = k.new_empty(0, k.shape[-1]), v.new_empty(0, v.shape[-1])
        wanted = [n + added[s // self.heads] for s, n in enumerate(self.length)]
        if all(w <= c for w, c in zip(wanted, self.capacity)) and not self.shared:
            return
        slack = [max(16, w // 64) if max(added) == 1 else 0 for w in wanted]
        if len(set(self.length)) == 1:
            slack = [max(slack)] * len(slack)
        self._move(None, self.length, [w + extra for w, extra in zip(wanted, slack)])

    def _move(self, rows: Tensor | None, length: Sequence[int], capacity: Sequence[int]) -> None:
        """Copy to fresh buffers with the given lengths and capacities: all that is alive, or the chosen flat `rows`, which
        then fill the buffers."""
        start = [0] * len(capacity)
        for s in range(1, len(capacity)):
            start[s] = start[s - 1] + capacity[s - 1]
        total = sum(capacity)
        for name in ("k", "v", "position", "tally"):
            buffer = getattr(self, name)
            if buffer is None:
                continue
            fresh = buffer.new_empty(total, *buffer.shape[1:])
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

    def _flat(self, start: Sequence[int], length: Sequence[int]) -> Tensor:
        """Row numbers of all segments, one after the other."""
        spans = [torch.arange(a, a + n) for a, n in zip(start, length)]
        return torch.cat(spans).to(self.k.device)

    # ---- drop, change --------------------------------------------------------------------------------------------

    def keep(self, masks: Sequence[Tensor | Sequence[Tensor]]) -> int:
        """Drop rows. `masks[b][h]` [N] bool says which of the last N rows of head `h` of sequence `b` stay; rows before
        them stay. Returns the rows dropped. The buffers shrink to what is left: the memory is free at once."""
        alive = torch.zeros(self.k.shape[0], dtype=torch.bool, device=self.k.device)
        before, stay = [], []
        for s in range(len(self.start)):
            mask = masks[s // self.heads][s % self.heads].to(alive.device)
            n = len(mask)
            if n > self.length[s]:
                raise ValueError(f"a mask over {n} rows for a segment of {self.length[s]}")
            span = self.segment(s)
            alive[span.start : span.stop - n] = True
            alive[span.stop - n : span.stop] = mask
            before.append(self.length[s] - n)
            stay.append(mask.sum())
        length = [n + more for n, more in zip(before, torch.stack(stay).tolist())]
        dropped = self.rows - sum(length)
        if dropped:
            self._materialise_positions()
            self._move(alive.nonzero().squeeze(-1), length, length)
        return dropped

    def slide(self, s: int, sinks: int, window: int) -> int:
        """Drop the rows of segment `s` that are neither among the first `sinks` tokens nor among the last `window`, in place:
        the buffer keeps its size, and the room is used again by the next tokens. Returns the rows dropped."""
        n, head = self.length[s], min(sinks, self.length[s])
        drop = n - head - window
        if drop <= 0:
            return 0
        self._materialise_positions()
        if self.shared:
            self._move(None, self.length, self.capacity)
        to, end = self.start[s] + head, self.start[s] + n
        for x in (self.k, self.v, self.position, self.tally):
            if x is not None:
                x[to : to + window] = x[end - window : end].clone()
        self.length[s] = n - drop
        return drop

    def open_tally(self) -> None:
        """Start to keep a number with each row, 0 at first."""
        if self.tally is None:
            self.tally = torch.zeros(self.k.shape[0], dtype=torch.float32, device=self.k.device)
            self.watch(self.nbytes)

    def _materialise_positions(self) -> None:
        if self.position is not None:
            return
        small = max(self.seen) <= torch.iinfo(torch.int16).max
        self.position = torch.zeros(self.k.shape[0], dtype=torch.int16 if small else torch.int32, device=self.k.device)
        for s, (a, n) in enumerate(zip(self.start, self.length)):
            self.position[a : a + n] = torch.arange(n, device=self.position.device).to(self.position.dtype)
            assert self.seen[s // self.heads] == n, "rows are missing that were never dropped"

    def replace(self, s: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Overwrite chosen rows of segment `s`: `rows` [n] counted inside the segment, `k` [n, Dk], `v` [n, Dv]."""
        if not len(rows):
            return
        if not 0 <= int(rows.min()) <= int(rows.max()) < self.length[s]:
            raise ValueError(f"rows {rows.tolist()} outside a segment of {self.length[s]} rows")
        if self.shared:
            self._move(None, self.length, self.capacity)
        self.k[self.start[s] + rows] = k.to(self.k.dtype)
        self.v[self.start[s] + rows] = v.to(self.v.dtype)

    # ---- branch, go back -----------------------------------------------------------------------------------------

    def fork(self, watch: Callable[[int], None] = lambda held: None) -> Arena:
        """A second arena with the same rows. The buffers are shared until one of the two writes."""
        twin = Arena(self.batch, self.heads, watch)
        twin.k, twin.v, twin.position, twin.tally = self.k, self.v, self.position, self.tally
        twin.start, twin.length, twin.capacity = list(self.start), list(self.length), list(self.capacity)
        twin.seen = list(self.seen)
        self.shared = twin.shared = True
        return twin

    def follow(self, lead: Arena) -> None:
        """Hold the rows of `lead`, which has stored the tokens seen here and then some more, without a copy; the tallies of
        new rows start at 0."""
        old, spans = self.tally, [slice(a, a + n) for a, n in zip(self.start, self.length)]
        self.k, self.v, self.position = lead.k, lead.v, lead.position
        self.start, self.length, self.capacity = list(lead.start), list(lead.length), list(lead.capacity)
        self.seen, self.shared, lead.shared, self.plan = list(lead.seen), True, True, None
        if old is not None:
            fresh = old.new_zeros(len(self.k))
            self.watch(self.nbytes + fresh.nbytes)
            for start, span in zip(self.start, spans):
                fresh[start : start + span.stop - span.start] = old[span]
            self.tally = fresh
        self.watch(self.nbytes)

    def mark(self) -> tuple[int, ...]:
        """A moment to come back to with `rollback`: the tokens each sequence has seen."""
        return tuple(self.seen)

    def rollback(self, mark: Sequence[int]) -> None:
        """Forget the tokens seen since `mark`. ValueError if one of their rows was dropped meanwhile: rows before them
        may be gone too, and cannot come back."""
        back = [now - then for now, then in zip(self.seen, mark)]
        if min(back) < 0:
            raise ValueError(f"cannot go to {list(mark)} tokens: this store has not seen more than {self.seen}")
        for s, n in enumerate(self.length):
            undo, seen = back[s // self.heads], self.seen[s // self.heads]
            if undo and (undo > n or int(self.positions(s, undo)[0]) != seen - undo):
                raise ValueError("cannot roll back past an eviction: the dropped rows are gone")
        self.length = [n - back[s // self.heads] for s, n in enumerate(self.length)]
        self.seen = list(mark)

    def select(self, sequences: Sequence[int]) -> None:
        """Reorder, repeat or drop whole sequences (beam search): sequence `i` becomes the old `sequences[i]`."""
        source = [b * self.heads + h for b in sequences for h in range(self.heads)]
        length = [self.length[s] for s in source]
        rows = self._flat([self.start[s] for s in source], length)
        self.batch, self.seen = len(sequences), [self.seen[b] for b in sequences]
        self._move(rows, length, length)
