"""The work list of a layer: which rows of which segment each program of a launch reads.

Segments are cut into tiles of equal size, so that a head with 131,072 rows and one with 1,152 load the GPU evenly.  A list is
made on the host, from the arena's own lists, and sent in one small copy that waits for nothing.  It stays valid while rows are
only appended (or taken back) alike in all segments: tiles cover the capacity, kernels add what has come since, and tiles that
hold nothing yet return at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.arena import Arena

Windows = Sequence[tuple[int, int] | None]
TILES = 8  # programs per multiprocessor: enough for an even end, few enough that merging them costs little
SHORTEST = 128  # rows of the smallest tile
FOREVER = 1 << 30  # the window of a head that has none


@dataclass(eq=False)
class Plan:
    """The list, on the host what it was made from, and on the device what kernels read.

    segments: [4, S] int32, each segment's start, length, sinks, window. seen: [B] int32 tokens per sequence. tiles: [P, 2]
    int32, segment and first row. first: [S + 1] int32, each segment's first tile. grown: [1] int32, rows that segments gained
    on the device since: a step captured as a CUDA graph adds to it, otherwise it stays 0 and the host passes the number.
    """

    place: tuple[object, ...]
    cut: tuple[object, ...]
    counts: list[int]  # lengths, then tokens seen, when the list was made
    tile: int
    segments: Tensor
    seen: Tensor
    tiles: Tensor
    first: Tensor
    grown: Tensor

    def gained(self, counts: Sequence[int]) -> int | None:
        """Rows that each segment has gained (or lost) since the list was made, or None if not all the same number."""
        more = counts[0] - self.counts[0]
        return more if all(n - m == more for n, m in zip(counts, self.counts)) else None


def plan_for(
    arena: Arena, first: int, count: int, windows: Windows | None = None, blocks: int | None = None
) -> tuple[Plan, int]:
    """The list for `count` sequences from `first` on, and the rows gained since it was made. It is kept with the arena.

    `blocks`: how many blocks of queries each tile meets; with many of them, segments need not be cut. None takes any list
    that is there, for those who only need to know where segments lie.
    """
    of = slice(first * arena.heads, (first + count) * arena.heads)
    start, length, capacity = arena.start[of], arena.length[of], arena.capacity[of]
    seen = arena.seen[first : first + count]
    place = (first, start, capacity, arena.k.device)
    tile = tile_rows(sum(length), max(capacity), blocks or 1, processors(arena.k.device))
    cut = (None if windows is None else tuple(windows), tile)
    kept = arena.plan
    if isinstance(kept, Plan) and kept.place == place and (blocks is None or kept.cut == cut):
        gained = kept.gained([*length, *seen])
        if gained is not None:
            return kept, gained
    sight = [None] * len(start) if windows is None else [window for _ in range(count) for window in windows]
    plan = make_plan(start, length, capacity, sight, tile, arena.k.device, seen, place, cut)
    arena.plan = plan
    return plan, 0


def make_plan(
    start: Sequence[int],
    length: Sequence[int],
    capacity: Sequence[int],
    windows: Windows,
    tile: int,
    device: torch.device,
    seen: Sequence[int] = (),
    place: tuple[object, ...] = (),
    cut: tuple[object, ...] = (),
) -> Plan:
    """A list over any segments: every one has at least one tile, so that an empty head gets its zeros."""
    tiles = [max(1, -(-n // tile)) for n in capacity]
    bounds = [0]
    for n in tiles:
        bounds.append(bounds[-1] + n)
    sight = [(0, FOREVER) if window is None else window for window in windows]
    work = [x for s, n in enumerate(tiles) for i in range(n) for x in (s, i * tile)]
    segments = [*start, *length, *(sinks for sinks, _ in sight), *(window for _, window in sight)]
    parts = _send([segments, list(seen), work, bounds, [0]], device)
    counts = [*length, *seen]
    return Plan(place, cut, counts, tile, parts[0].view(4, -1), parts[1], parts[2].view(-1, 2), parts[3], parts[4])


def _send(lists: Sequence[list[int]], device: torch.device) -> list[Tensor]:
    """All lists to the device in one copy; each begins at a multiple of 16 bytes, so that no kernel is compiled twice."""
    padded = [x for numbers in lists for x in (*numbers, *[0] * (-len(numbers) % 4))]
    host = torch.tensor(padded, dtype=torch.int32)
    flat = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
    parts, at = [], 0
    for numbers in lists:
        parts.append(flat[at : at + len(numbers)])
        at += len(numbers) + -len(numbers) % 4
    return parts


def tile_rows(rows: int, longest: int, blocks: int, processors: int) -> int:
    """Rows of a tile: a power of two, at which tiles × blocks fill the processors several times over."""
    wanted = max(1, TILES * processors // blocks)
    tile = SHORTEST
    while tile < longest and tile * wanted < rows:
        tile *= 2
    return tile


def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
