"""The store of one layer: keys and values in one buffer each, a contiguous segment per (sequence, KV head).

Segments have their own lengths, so what a method drops in one head is really freed.  Axes, here and everywhere:
`B` batch, `L` layers, `H` KV heads, `G` query heads per KV head, `T` new tokens, `N` rows looked at, `D` head dim,
`S = B·H` segments, segment `s = b·H + h`.  Why one flat buffer and not padding or pages: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kvledger.cache import kernels
from kvledger.cache.formats import Stored, numbers
from kvledger.cache.ragged import Ragged, starts


class Region(NamedTuple):
    """Rows in one form; segment `s` has rows `start[s] : start[s] + length[s]` of both."""

    k: Stored
    v: Stored
    start: list[int]
    length: list[int]


class Arena(Ragged):
    """Rows of keys `k` [rows, Dk] and values `v` [rows, Dv]; segment `s` owns `start[s] : start[s] + length[s]`.

    Rows of a segment are in the order of their tokens.  `position` is None while no row was ever dropped (row `i` is token
    `i`); afterwards it holds the token index of each row, counted without padding.  `watch(bytes)` is told the bytes held
    at each change, the short moment in which an old and a new buffer both live included.  `tally` [rows] float32, if a method
    asks for one, is a number of the method's own that moves with each row and is counted with it.

    Who reads rows does so by `regions` or `plain`: in other kinds of arena (`packed.py`, `grouped.py`) `k` and `v` are not
    the numbers themselves.
    """

    names: tuple[str, ...] = ("k", "v", "position", "tally")
    by_row = True  # each row stands for itself, so that a shorter arena can be seen as the first rows of a longer one

    def __init__(self, batch: int, heads: int, watch: Callable[[int], None] = lambda held: None):
        super().__init__(batch * heads, watch)
        self.batch, self.heads = batch, heads
        self.position: Tensor | None = None
        self.tally: Tensor | None = None
        self.seen = [0] * batch
        self.plan: object = None  # the CUDA reader's work list, good until lengths change other than by appending

    # ---- what is there -------------------------------------------------------------------------------------------

    def positions(self, s: int, tail: int | None = None) -> Tensor:
        """Token index of each row of segment `s`, int64, ascending."""
        if self.position is not None:
            return self.position[self.segment(s, tail)].long()
        n = self.length[s]
        return torch.arange(n - (n if tail is None else tail), n, device=self.k.device)

    @property
    def regions(self) -> list[Region]:
        """Where the rows of each segment are: the first of them in the first region, the next in the next."""
        return [Region(self.k, self.v, self.start, self.length)]

    def plain(self, s: int, tail: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys [n, Dk] and values [n, Dv] of segment `s`, or of its last `tail` rows, as numbers in the model's dtype: views of
        the buffers where rows are stored as they are."""
        return self.span(s, 0 if tail is None else self.length[s] - tail, self.length[s])

    def span(self, s: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `plain`, of the rows `first` to `stop` of segment `s`, counted inside it."""
        found = []
        for region in self.regions:
            n, at = region.length[s], region.start[s]
            rows = slice(at + min(max(first, 0), n), at + min(max(stop, 0), n))
            found.append((numbers(region.k, rows), numbers(region.v, rows)))
            first, stop = first - n, stop - n
        k, v = zip(*found)
        return (k[0], v[0]) if len(k) == 1 else (torch.cat(k), torch.cat(v))

    # ---- append --------------------------------------------------------------------------------------------------

    def append(self, k: Tensor, v: Tensor, valid: Tensor | None = None) -> list[int]:
        """Add `k` [B, H, T, Dk] and `v` [B, H, T, Dv] behind each segment; returns the tokens added per sequence.

        `valid` [B, T] bool marks real tokens; the others (padding) are never stored.
        """
        added = [k.shape[2]] * self.batch if valid is None else [int(n) for n in valid.sum(-1).tolist()]
        if not any(added):
            return added
        new, of_segment = self._form(k, v), [added[s // self.heads] for s in range(len(self.start))]
        self.reserve(new, of_segment)
        self._widen(max(added))
        if valid is None and type(self) is Arena and kernels.usable(self.k):
            from kvledger.cache.kernels.append import append  # late: it needs Triton

            append(self, k, v)
            self.length = [n + more for n, more in zip(self.length, of_segment)]
        else:
            self.put(new | self._known(k.shape[2], valid), of_segment, valid)
        self.seen = [n + more for n, more in zip(self.seen, added)]
        return added

    def _form(self, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """What is stored of keys [..., Dk] and values [..., Dv], by the name of the buffer."""
        return {"k": k, "v": v}

    def _known(self, T: int, valid: Tensor | None) -> dict[str, Tensor]:
        """Token indices and tallies [B, H, T] of new rows, where such are kept."""
        new, shape = {}, (self.batch, self.heads, T)
        if self.position is not None:
            more = torch.arange(T)[None] if valid is None else valid.cpu().cumsum(-1) - 1
            tokens = torch.tensor(self.seen)[:, None] + more
            new["position"] = tokens.to(self.position)[:, None].expand(shape)
        if self.tally is not None:
            new["tally"] = self.tally.new_zeros(shape)
        return new

    def _widen(self, more: int) -> None:
        """Token indices in 32 bits, once 16 are too few for `more` tokens."""
        if self.position is not None and max(self.seen) + more > torch.iinfo(self.position.dtype).max:
            self.position = self.position.to(torch.int32)
            self.watch(self.nbytes)

    def seal(self) -> None:
        """A forward is over, and what it was to drop is gone: rows may take the form that they will keep."""

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
            self.move(alive.nonzero().squeeze(-1), length, length)
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
            self.move(None, self.length, self.capacity)
        to, end = self.start[s] + head, self.start[s] + n
        for x in self.buffers.values():
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
            self.move(None, self.length, self.capacity)
        for name, x in self._form(k, v).items():
            buffer = getattr(self, name)
            buffer[self.start[s] + rows] = x.to(buffer.dtype)

    # ---- branch, go back -----------------------------------------------------------------------------------------

    def fork(self, watch: Callable[[int], None] = lambda held: None) -> Self:
        """A second arena with the same rows. The buffers are shared until one of the two writes."""
        twin = super().fork(watch)
        twin.seen, twin.plan = list(self.seen), None
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
        rows = self.flat(source)
        self.batch, self.seen = len(sequences), [self.seen[b] for b in sequences]
        self.move(rows, length, length)

    # ---- to a file and back --------------------------------------------------------------------------------------

    def dump(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `load` needs: facts (numbers and lists, for JSON), and tensors without slack."""
        rows = self.flat(range(len(self.start)))
        return {"length": self.length, "seen": self.seen}, {name: x[rows] for name, x in self.buffers.items()}

    def load(self, facts: dict[str, Any], held: dict[str, Tensor]) -> None:
        """Hold what another arena of this kind and shape has dumped."""
        self.length, self.capacity, self.seen = list(facts["length"]), list(facts["length"]), list(facts["seen"])
        self.start = starts(self.length)
        for name in self.names:
            setattr(self, name, held.get(name))
