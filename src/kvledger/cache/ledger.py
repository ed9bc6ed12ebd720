"""The meter: entries and bytes over a request's whole life, per layer and KV head.

*Entry footprint* ("Cache Me If You Can", arXiv 2506.17121, §2.1): a forward of `T` query rows over `P` entries already
alive in a head costs `T(T+1)/2 + T·P`; summed over the request, divided by the same sum for a cache that drops nothing.
*Byte footprint* is the same with the bytes really held: positions, slack, rows repeated per query head, window queries.
The reference is the full cache of the model, keys and values only, in the dtype it runs in.

The meter only adds up what the store tells it; no method can report a number of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field


def triangle(T: int, P: int) -> float:
    """Query–entry pairs of a forward of `T` rows over `P` older entries."""
    return T * (T + 1) / 2 + T * P


@dataclass
class Step:
    """One forward: what it was for, its tokens, tokens of the request so far (a probe's are none of them), entries alive
    (summed over layers and heads) and bytes."""

    kind: str
    tokens: int
    processed: int
    full: int = 0
    top: int = 0
    end: int = 0
    read_bytes: int = 0
    full_read_bytes: int = 0
    other_bytes: int = 0  # of layers that are left alone, which a step reads whole


@dataclass
class LayerBook:
    """One layer's sums. `area` per stored segment; `full_area` for one full KV head; bytes are byte·steps."""

    heads: int
    full_row_bytes: int
    sequences: int
    area: list[float]
    full_area: float = 0.0
    floor_area: float = 0.0
    byte_area: float = 0.0
    full_seen: list[int] = field(default_factory=list)
    floor_alive: list[int] = field(default_factory=list)
    held: int = 0
    alive: int = 0
    dropped: int = 0
    work: list[float] = field(default_factory=list)  # query-key pairs of prompts, per stored segment
    full_work: float = 0.0  # the same in one full KV head


class Ledger:
    """Everything a request has cost so far. Fed by the cache layers; read by whoever wants to know."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerBook] = {}
        self.steps: list[Step] = []
        self.kind = "auto"
        self.other_bytes = 0
        self.peak_bytes = 0
        self.full_peak_bytes = 0
        self.skipped = 0  # tokens of the context that a source left out: the full cache would have read them
        self.taken = 0  # tokens of prompts that a store of chunks gave, unread
        self._last_layer = -1

    # ---- fed by the store ----------------------------------------------------------------------------------------

    def open_layer(self, layer: int, sequences: int, segments: int, heads: int, full_row_bytes: int) -> None:
        """A layer that holds KV: `segments` stored, against `heads` KV heads of `full_row_bytes` a row in the full cache."""
        book = LayerBook(heads, full_row_bytes, sequences, [0.0] * segments)
        book.full_seen, book.floor_alive, book.work = [self.skipped] * sequences, [0] * sequences, [0.0] * segments
        book.full_area = book.full_work = sequences * triangle(self.skipped, 0)
        self.layers[layer] = book

    def skip(self, tokens: int) -> None:
        """In all, `tokens` of each sequence's context were left out before it was read."""
        more, self.skipped = tokens - self.skipped, tokens
        for book in self.layers.values():  # the order in which a full cache reads does not change its sums
            pairs = sum(triangle(more, seen) for seen in book.full_seen)
            book.full_area, book.full_work = book.full_area + pairs, book.full_work + pairs
            book.full_seen = [seen + more for seen in book.full_seen]

    def hold(self, layer: int, nbytes: int) -> None:
        """Bytes a layer holds at this moment."""
        self.layers[layer].held = nbytes
        self.peak_bytes = max(self.peak_bytes, self.stored_bytes)

    def hold_other(self, nbytes: int) -> None:
        """Bytes of layers that are left alone (sliding windows, recurrent states): held here and in the full cache."""
        self.other_bytes = nbytes
        if self.steps:
            self.steps[-1].other_bytes = nbytes
        self.peak_bytes = max(self.peak_bytes, self.stored_bytes)
        self.full_peak_bytes = max(self.full_peak_bytes, self.full_bytes)

    def forward(
        self,
        layer: int,
        added: Sequence[int],
        alive: Sequence[int],
        row_bytes: int,
        probe: int | Sequence[int] = 0,
        read: int | None = None,
    ) -> None:
        """A forward of `added[b]` new tokens has appended to a layer; `alive[s]` counts them in. `probe` (of each) will be
        rolled back (patch tokens): they cost, but the full cache would not have had them. `read`: bytes read, index included,
        where that is not every row."""
        book, per = self.layers[layer], len(alive) // len(added)
        probes = [probe] * len(added) if isinstance(probe, int) else probe
        if layer <= self._last_layer or not self.steps:
            self._begin(sum(added), sum(probes))
        self._last_layer = layer
        rows = 0.0
        for s, n in enumerate(alive):
            T = added[s // per]
            pairs = triangle(T, n - T)
            book.area[s] += pairs
            rows += pairs
        book.alive = sum(alive)
        overhead = max(0, book.held - book.alive * row_bytes)
        book.byte_area += rows * row_bytes + max(added) * overhead
        self._reference(book, [T - p for T, p in zip(added, probes)])
        step = self.steps[-1]
        step.top += book.alive
        step.end += book.alive
        step.full += sum(book.full_seen) * book.heads
        step.read_bytes += book.alive * row_bytes if read is None else read
        step.full_read_bytes += sum(book.full_seen) * book.heads * book.full_row_bytes
        self.full_peak_bytes = max(self.full_peak_bytes, self.full_bytes)

    def take(self, layer: int, tokens: int, alive: Sequence[int]) -> None:
        """`tokens` of a prompt have come into a layer from a store; `alive[s]` counts them in. A full cache would have read
        them. Here no query has looked at anything, so they cost no entries and no pairs, until others are read over them."""
        book = self.layers[layer]
        if layer <= self._last_layer or not self.steps:
            self._begin(tokens, 0)
            self.taken += tokens
        self._last_layer, book.alive = layer, sum(alive)
        pairs = [triangle(tokens, seen) for seen in book.full_seen]
        book.full_area, book.full_work = book.full_area + sum(pairs), book.full_work + sum(pairs)
        book.full_seen = [seen + tokens for seen in book.full_seen]
        book.floor_alive = [n + tokens for n in book.floor_alive]
        step = self.steps[-1]
        step.top, step.end = step.top + book.alive, step.end + book.alive
        step.full += sum(book.full_seen) * book.heads
        self.full_peak_bytes = max(self.full_peak_bytes, self.full_bytes)

    def pass_by(self, tokens: int) -> None:
        """A forward of `tokens` through a model all of whose layers are left alone: there is nothing but a state."""
        self._begin(tokens, 0)

    def _begin(self, tokens: int, probes: int) -> None:
        kind = self.kind if self.kind != "auto" else ("read" if tokens > 1 else "decode")
        done = self.steps[-1].processed if self.steps else 0
        self.steps.append(Step(kind, tokens, done + tokens - probes))

    @staticmethod
    def _reference(book: LayerBook, added: Sequence[int]) -> None:
        for b, T in enumerate(added):
            book.full_area += triangle(T, book.full_seen[b])
            book.floor_area += triangle(T, book.floor_alive[b])
            book.full_seen[b] += T
            book.floor_alive[b] += T

    def look(self, layer: int, pairs: Sequence[float], added: Sequence[int], probe: int | Sequence[int] = 0) -> None:
        """The queries of a prompt's `added[b]` tokens, just booked by `forward`, took `pairs[s]` query-key pairs of a segment,
        mean over the query heads that share it."""
        book = self.layers[layer]
        probes = [probe] * len(added) if isinstance(probe, int) else probe
        book.work = [sum(one) for one in zip(book.work, pairs)]
        book.full_work += sum(triangle(T - p, n - T + p) for T, p, n in zip(added, probes, book.full_seen))

    def evict(self, layer: int, alive: Sequence[int], dropped: int) -> None:
        """The scheduled moment at which a layer may drop rows has passed; `alive[s]` are left."""
        book = self.layers[layer]
        book.floor_alive = [0] * book.sequences
        book.dropped += dropped
        self._settle(book, sum(alive))

    def rollback(self, layer: int, alive: Sequence[int], tokens: int, probe: bool = False) -> None:
        """The last `tokens` tokens of each sequence were taken back; as a `probe` they never were in the full cache."""
        book = self.layers[layer]
        if not probe:
            book.full_seen = [n - tokens for n in book.full_seen]
            book.floor_alive = [max(0, n - tokens) for n in book.floor_alive]
        self._settle(book, sum(alive))

    def _settle(self, book: LayerBook, alive: int) -> None:
        self.steps[-1].end += alive - book.alive
        book.alive = alive

    # ---- what it came to -----------------------------------------------------------------------------------------

    @property
    def footprint(self) -> float:
        """Entry footprint as a fraction of the full cache's; mean over layers and KV heads."""
        return self._over_full(sum(sum(book.area) for book in self.layers.values()))

    @property
    def floor(self) -> float:
        """The entry footprint that would be left if each scheduled moment dropped everything: the schedule's own cost."""
        return self._over_full(sum(book.floor_area * book.heads for book in self.layers.values()))

    def _over_full(self, area: float) -> float:
        full = sum(book.full_area * book.heads for book in self.layers.values())
        return area / full if full else self._whole

    @property
    def _whole(self) -> float:
        """What a ratio to a full cache without keys and values is: 1, since it holds all that it ever would."""
        return float(bool(self.steps) and not self.layers)

    @property
    def footprint_by_head(self) -> list[list[float]]:
        """Entry footprint of each layer and stored head, each against one full KV head (sequences added up)."""
        table = []
        for book in self.layers.values():
            per = len(book.area) // book.sequences
            table.append([sum(book.area[h::per]) / book.full_area for h in range(per)])
        return table

    @property
    def byte_footprint(self) -> float:
        """Byte·steps held as a fraction of the full cache's."""
        held = sum(book.byte_area for book in self.layers.values())
        full = sum(book.full_area * book.heads * book.full_row_bytes for book in self.layers.values())
        return held / full if full else self._whole

    @property
    def prefill_work(self) -> float:
        """Query-key pairs computed while prompts were read, as a fraction of causal attention over the full cache; those of
        which only the product was computed, to choose what to read, count half. Attention's operations are in proportion."""
        full = sum(book.full_work for book in self.layers.values())
        done = sum(sum(book.work) * book.sequences / max(1, len(book.work)) for book in self.layers.values())
        return done / full if full else 1.0

    @property
    def peak(self) -> float:
        """Largest mean number of entries alive in a KV head during any forward, over the tokens of the request."""
        tokens = max((step.full for step in self.steps), default=0)
        return max((step.top for step in self.steps), default=0) / tokens if tokens else self._whole

    @property
    def stored_bytes(self) -> int:
        """Bytes held now, read from the tensors; layers that are left alone (sliding windows) included."""
        return sum(book.held for book in self.layers.values()) + self.other_bytes

    @property
    def full_bytes(self) -> int:
        """Bytes of the keys and values that a full cache would hold now."""
        books = self.layers.values()
        return sum(sum(book.full_seen) * book.heads * book.full_row_bytes for book in books) + self.other_bytes

    @property
    def dropped(self) -> int:
        """Rows evicted so far, over all layers and heads."""
        return sum(book.dropped for book in self.layers.values())

    @property
    def bytes_read_per_step(self) -> tuple[int, int]:
        """Bytes of KV, sliding windows and states that a decode step reads, mean over the decode steps so far: (this cache,
        the full cache)."""
        steps = [step for step in self.steps if step.kind == "decode"]
        if not steps:
            return 0, 0
        other = sum(s.other_bytes for s in steps)
        read, full = sum(s.read_bytes for s in steps), sum(s.full_read_bytes for s in steps)
        return (read + other) // len(steps), (full + other) // len(steps)

    def curve(self) -> tuple[tuple[int, float, str], ...]:
        """Entries alive (mean over layers and full KV heads) over the tokens so far: a point before each forward's tokens
        settle and, where rows were dropped, one after. Runs of decode steps keep their first and last point."""
        heads = sum(book.heads * book.sequences for book in self.layers.values()) or 1
        points: list[tuple[int, float, str]] = []
        for i, step in enumerate(self.steps):
            inside = 0 < i < len(self.steps) - 1 and step.kind == self.steps[i - 1].kind == self.steps[i + 1].kind
            if step.kind == "decode" and inside and step.top == step.end:
                continue
            points.append((step.processed, step.top / heads, step.kind))
            if step.end != step.top:
                points.append((step.processed, step.end / heads, "evict" if step.kind == "read" else step.kind))
        return tuple(points)

    def fork(self) -> Ledger:
        return copy.deepcopy(self)
