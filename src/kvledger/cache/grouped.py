"""An arena whose older rows are sealed in groups, KIVI's way (Liu et al., 2024, arXiv 2402.02750, §3.2): keys in few bits per
channel over a group of tokens, values per token over a group of channels, and a plain tail of the youngest rows.

A forward's rows are plain until it is over and what it was to drop is gone; then `seal` packs whole groups of each segment's
oldest plain rows, as long as `residual` rows stay plain.  So the tail holds `residual` to `residual + group - 1` rows.

What was sealed is never written again, so forks share it for good.  Dropping rows, going back and overwriting open the groups
from the first touched one on: their survivors are unpacked and sealed anew with what follows, which costs them a second
rounding, |x - x̂| <= (scale + new scale) / 2; untouched groups stay as they are, and rows that were still plain lose nothing.
Methods that judge each chunk once, as it is read, open nothing; budgets that all layers share are settled when the first
layers have sealed.

Deviations: keys and values of a row are sealed together and at least `residual` rows are always plain; in the paper the values'
residual is always full and the keys' runs from empty to full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from kvledger.cache.arena import Arena, Region
from kvledger.cache.formats import Stored, affine
from kvledger.cache.kernels.codes import Codes
from kvledger.cache.packed import check_type, type_name, type_of
from kvledger.cache.ragged import Ragged, starts

Sealed = dict[str, Tensor]  # "k", "v" and, with fewer bits, "k_scale", …: groups of all segments, one after the other
Segment = tuple[Sealed, int, Tensor, Tensor]  # what is sealed, its rows, and plain rows behind them


class GroupedArena(Arena):
    """`bits` 2 or 4, or 16: sealed rows stay as they are, which shows what grouping alone costs (nothing). `group`: rows that
    share a key's scale, channels that share a value's. The buffers `k` and `v` of the arena itself have no columns."""

    by_row = False

    def __init__(
        self,
        bits: int,
        group: int,
        residual: int,
        batch: int,
        heads: int,
        watch: Callable[[int], None] = lambda held: None,
    ) -> None:
        super().__init__(batch, heads, watch)
        self.bits, self.group, self.residual = bits, group, residual
        self.dtype = torch.float32
        self.sealed: Sealed = {}
        self.sealed_length = [0] * len(self.start)
        self._follow(Ragged(len(self.start)))

    def _follow(self, tail: Ragged) -> None:
        """Let `tail` hold the plain rows, and tell of its moves."""
        self.tail = tail
        tail.watch = self._watch_tail

    # ---- what is there -------------------------------------------------------------------------------------------

    def _watch_tail(self, held: int) -> None:
        self.watch(self.nbytes - self.tail.nbytes + held)

    @property
    def tensors(self) -> list[Tensor]:
        return [*super().tensors, *self.sealed.values(), *self.tail.tensors]

    @property
    def row_nbytes(self) -> int:
        """Bytes of a sealed row, its share of the group's scales included."""
        return super().row_nbytes + self._sealed_nbytes

    @property
    def _sealed_nbytes(self) -> int:
        """Bytes of a sealed row without its position; `tail.row_nbytes` are those of a plain one."""
        if self.bits == 16:
            return self.tail.row_nbytes
        Dk, Dv = self.tail.k.shape[-1], self.tail.v.shape[-1]
        scales = 4 * Dk // self.group + 4 * (Dv // self.group)  # a float16 scale and zero each
        return (Dk + Dv) * self.bits // 8 + scales

    def read_nbytes(self, spans: Tensor) -> int:
        of, first, n = spans.cpu().unbind(-1)
        sealed = torch.tensor(self.start)[of] + torch.tensor(self.sealed_length)[of]
        plain = int((first + n - torch.maximum(first, sealed)).clamp(min=0).sum())
        return super().read_nbytes(spans) + plain * (self.tail.row_nbytes - self._sealed_nbytes)

    @property
    def alive_nbytes(self) -> int:
        plain = self.rows - sum(self.sealed_length)
        return super().alive_nbytes + plain * (self.tail.row_nbytes - self._sealed_nbytes)

    @property
    def regions(self) -> list[Region]:
        tail = Region(self.tail.k, self.tail.v, self.tail.start, self.tail.length)
        if not any(self.sealed_length):
            return [tail]
        return [Region(self._stored("k"), self._stored("v"), starts(self.sealed_length), self.sealed_length), tail]

    def _stored(self, name: str) -> Stored:
        data = self.sealed[name]
        if self.bits == 16:
            return data
        groups = (self.group, 1) if name == "k" else (1, self.group)
        return Codes(data, self.sealed[f"{name}_scale"], self.sealed[f"{name}_zero"], *groups, self.bits, self.dtype)

    # ---- in and out of groups ------------------------------------------------------------------------------------

    def _pack(self, k: Tensor, v: Tensor) -> Sealed:
        """Whole groups of rows `k` [n, Dk], `v` [n, Dv]."""
        if self.bits == 16:
            return {"k": k, "v": v}
        keys, values = affine(k.unflatten(0, (-1, self.group)), self.bits, 1), v.unflatten(-1, (-1, self.group))
        values = affine(values, self.bits, -1)
        sealed = {"k": keys["data"].flatten(0, 1), "v": values["data"].flatten(1)}
        sealed |= {f"k_{what}": keys[what].squeeze(1) for what in ("scale", "zero")}
        return sealed | {f"v_{what}": values[what].squeeze(-1) for what in ("scale", "zero")}

    def _part(self, s: int, stop: int) -> Sealed:
        """The first `stop` sealed rows of segment `s`, whole groups."""
        at = sum(self.sealed_length[:s])

        def rows(name: str) -> slice:
            each = self.group if name in ("k_scale", "k_zero") else 1
            return slice(at // each, (at + stop) // each)

        return {name: x[rows(name)] for name, x in self.sealed.items()}

    def _as_it_is(self, s: int) -> Segment:
        rows, sealed = self.tail.segment(s), self.sealed_length[s]
        return self._part(s, sealed), sealed, self.tail.k[rows], self.tail.v[rows]

    def _opened(self, s: int, stay: Tensor) -> Segment:
        """Segment `s` without the rows that do not `stay` [n], open from the first group on that loses one."""
        first = int((~stay).nonzero()[0])
        first = min(self.sealed_length[s], first // self.group * self.group)
        k, v = self.span(s, first, len(stay))
        return self._part(s, first), first, k[stay[first:]], v[stay[first:]]

    def _settle(self, segments: Iterable[Segment]) -> None:
        """Hold these, and seal what is due of their plain rows. They come one by one, so that no more than one of them is ever
        unpacked."""
        sealed, length, tails = [], [], []
        for old, n, k, v in segments:
            due = max(0, len(k) - self.residual) // self.group * self.group
            sealed += [old, self._pack(k[:due], v[:due])] if due else [old]
            length.append(n + due)
            tails.append((k[due:].clone(), v[due:].clone()))
        full = [part for part in sealed if part and len(part["k"])]
        names = full[0] if full else {}
        self.watch(self.nbytes + sum(x.nbytes for part in full for x in part.values()))
        self.sealed = {name: torch.cat([part[name] for part in full]) for name in names}
        self.sealed_length = length
        tail = Ragged(len(length))
        tail.k, tail.v = torch.cat([k for k, _ in tails]), torch.cat([v for _, v in tails])
        tail.length, tail.capacity = [len(k) for k, _ in tails], [len(k) for k, _ in tails]
        tail.start = starts(tail.length)
        self._follow(tail)
        self.watch(self.nbytes)

    def _change(self, changes: Mapping[int, Tensor]) -> None:
        """Drop rows of some segments: `changes[s]` [n] bool, which of all their rows stay, some of them not."""
        self._settle(
            self._opened(s, changes[s]) if s in changes else self._as_it_is(s) for s in range(len(self.sealed_length))
        )

    def seal(self) -> None:
        if max(self.tail.length, default=0) >= self.residual + self.group:
            self._change({})

    # ---- what an arena does --------------------------------------------------------------------------------------

    def append(self, k: Tensor, v: Tensor, valid: Tensor | None = None) -> list[int]:
        if not self.rows:
            check_type(k)
            check_groups(k.shape[-1], v.shape[-1], self.bits, self.group)
            self.dtype = k.dtype
        added = super().append(k[..., :0], v[..., :0], valid)
        of_segment = [added[s // self.heads] for s in range(len(self.start))]
        if any(added):
            self.tail.reserve({"k": k, "v": v}, of_segment)
            self.tail.put({"k": k, "v": v}, of_segment, valid)
        return added

    def keep(self, masks: Sequence[Tensor | Sequence[Tensor]]) -> int:
        changes = {}
        for s, n in enumerate(self.length):
            mask = masks[s // self.heads][s % self.heads].to(self.k.device)
            if not bool(mask.all()):
                changes[s] = torch.cat([mask.new_ones(max(0, n - len(mask))), mask])
        dropped = super().keep(masks)
        if dropped:
            self._change(changes)
        return dropped

    def slide(self, s: int, sinks: int, window: int) -> int:
        n = self.length[s]
        dropped = super().slide(s, sinks, window)
        if dropped:
            row = torch.arange(n, device=self.k.device)
            self._change({s: (row < sinks) | (row >= n - window)})
        return dropped

    def replace(self, s: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        super().replace(s, rows, k[:, :0], v[:, :0])
        if not len(rows):
            return
        first = min(self.sealed_length[s], int(rows.min()) // self.group * self.group)
        new_k, new_v = (x.clone() for x in self.span(s, first, self.length[s]))
        new_k[rows - first], new_v[rows - first] = k.to(self.dtype), v.to(self.dtype)
        self._settle(
            (self._part(i, first), first, new_k, new_v) if i == s else self._as_it_is(i) for i in range(len(self.start))
        )

    def rollback(self, mark: Sequence[int]) -> None:
        before = list(self.length)
        super().rollback(mark)
        back = [n - m for n, m in zip(before, self.length)]
        if all(n <= m for n, m in zip(back, self.tail.length)):
            self.tail.length = [m - n for n, m in zip(back, self.tail.length)]
        else:
            row = torch.arange(max(before), device=self.k.device)
            self._change({s: row[:n] < m for s, (n, m) in enumerate(zip(before, self.length)) if m < n})

    def select(self, sequences: Sequence[int]) -> None:
        source = [b * self.heads + h for b in sequences for h in range(self.heads)]
        super().select(sequences)
        self._settle(self._as_it_is(s) for s in source)

    def fork(self, watch: Callable[[int], None] = lambda held: None) -> Self:
        twin = super().fork(watch)
        twin._follow(self.tail.fork())
        return twin

    def dump(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, held = super().dump()
        rows = self.tail.flat(range(len(self.start)))
        facts |= {"sealed": self.sealed_length, "tail": self.tail.length, "dtype": type_name(self.dtype)}
        held |= {f"sealed_{name}": x for name, x in self.sealed.items()}
        return facts, held | {"tail_k": self.tail.k[rows], "tail_v": self.tail.v[rows]}

    def load(self, facts: dict[str, Any], held: dict[str, Tensor]) -> None:
        super().load(facts, held)
        self.dtype, self.sealed_length = type_of(facts["dtype"]), list(facts["sealed"])
        self.sealed = {name.removeprefix("sealed_"): x for name, x in held.items() if name.startswith("sealed_")}
        self.tail.k, self.tail.v = held["tail_k"], held["tail_v"]
        self.tail.length, self.tail.capacity = list(facts["tail"]), list(facts["tail"])
        self.tail.start = starts(self.tail.length)


def check_groups(key_dim: int, value_dim: int, bits: int, group: int) -> None:
    """ValueError for heads whose numbers do not fall into such groups."""
    if bits == 16:
        return
    if value_dim % group:
        fits = [g for g in (8, 16, 32, 64, 128) if value_dim % g == 0]
        hint = f"give group={fits[-1]}" if fits else "use int8"
        raise ValueError(f"group={group} does not divide the values' head dimension {value_dim}: {hint}")
    if key_dim % (8 // bits):
        raise ValueError(f"keys of dimension {key_dim} do not fill whole bytes at {bits} bits: use int8")
