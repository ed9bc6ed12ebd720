"""What a prompt's queries may look at: a choice, and the mask it stands for.

One KV head at a time, its T new queries those of the last T of its N stored rows.  Rows are counted as they are stored, so
after an eviction a distance is one of rows that are left.  Every choice is causal, and every query sees itself.

- `Band`: the first rows and the last ones, row by row (A-shape).
- `Blocks`: what a block of queries sees of the rows before its own block: whole blocks, single rows, diagonals.
- `Queries`: which earlier blocks each query sees.
- `Gated`: three attentions, to summaries, to chosen blocks and to a window, and how much of each (NSA).

In `Blocks` and `Queries` a query also sees its own block of rows, up to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Band:
    """The first `sinks` rows and the last `window` ones, a query's own among them; the last `dense` queries see all."""

    sinks: int
    window: int
    dense: int = 0


@dataclass(frozen=True, eq=False)
class Blocks:
    """What blocks of `size` queries see of the rows before them; the first block is that of row (N - T) // size · size.

    `seen` [G or 1, blocks of queries, blocks of rows] bool: whole blocks of rows. `columns` [G or 1, N] bool: rows that every
    later block sees. `offsets` [G or 1, N] bool: distances; where it is True at s, the block of queries a … a + size - 1
    sees the rows a - s … a - s + size - 1. `scored`: query-key products that it took to choose.
    """

    size: int
    seen: Tensor | None = None
    columns: Tensor | None = None
    offsets: Tensor | None = None
    scored: float = 0.0


@dataclass(frozen=True, eq=False)
class Queries:
    """Which earlier blocks of `size` rows each query sees: `seen` [G or 1, T, blocks of rows] bool."""

    size: int
    seen: Tensor
    scored: float = 0.0


@dataclass(frozen=True, eq=False)
class Gated:
    """A weighted sum of three attentions: to `runs` [C, Dk + Dv], the key and the value that stand for `compress` rows each,
    one beginning every `stride` rows (of them those that are complete), to what `selected` lets a query see, and to the last
    `window` rows, its own among them. `gates` [3, G, T] are their weights in this order."""

    selected: Queries
    window: int
    runs: Tensor
    compress: int
    stride: int
    gates: Tensor


Choice = Band | Blocks | Queries | Gated


def band_pairs(T: int, N: int, band: Band) -> float:
    """Query-key pairs of one head's T queries under a band."""
    late = min(band.dense, T)
    return _clipped(N - T, N - late, band.sinks + band.window) + _clipped(N - late, N, N)


def _clipped(start: int, stop: int, most: int) -> float:
    """The sum of min(i, most) over i = start + 1 … stop."""
    bend = min(max(most, start), stop)
    return (bend - start) * (start + bend + 1) / 2 + (stop - bend) * most


def visible(choice: Blocks, heads: int, first: int, start: int, stop: int, N: int) -> Tensor:
    """Rows that the blocks of queries `start` … `stop` (counted from `first`) see before their own: [G, blocks, rows] bool."""
    size, device = choice.size, next(x.device for x in (choice.seen, choice.columns, choice.offsets) if x is not None)
    width = min(N, (first + stop - 1) * size)
    begin = torch.arange(first + start, first + stop, device=device)[:, None] * size
    rows = torch.arange(width, device=device)
    mask = torch.zeros(heads, stop - start, width, dtype=torch.bool, device=device)
    if choice.seen is not None:
        whole = choice.seen[:, start:stop, : -(-width // size)]
        mask |= whole.repeat_interleave(size, -1)[..., :width]
    if choice.columns is not None:
        mask |= choice.columns[:, None, :width]
    if choice.offsets is not None:  # near [·, N + 1]: whether a diagonal begins there or less than a block later
        near = torch.nn.functional.pad(choice.offsets.to(torch.uint8), (0, size)).unfold(-1, size, 1).amax(-1).bool()
        mask |= near[:, (begin - rows).clamp(min=0)]
    return mask & (rows < begin)


def earlier(choice: Queries, T: int, N: int) -> Tensor:
    """`seen` without a query's own block and later ones."""
    own = torch.arange(N - T, N, device=choice.seen.device) // choice.size
    return choice.seen & (torch.arange(choice.seen.shape[-1], device=own.device) < own[:, None])


def cut(choice: Blocks | Queries, blocks: slice, queries: slice) -> Blocks | Queries:
    """The part of a choice that is about some `blocks` of queries, which are the `queries`."""
    if isinstance(choice, Queries):
        return Queries(choice.size, choice.seen[:, queries])
    seen = None if choice.seen is None else choice.seen[:, blocks]
    return Blocks(choice.size, seen, choice.columns, choice.offsets)


def allowed(choice: Choice, G: int, T: int, N: int, device: torch.device | str = "cpu") -> Tensor:
    """Which rows each query may see under a choice: [G, T, N] bool; of `Gated` besides the runs."""
    at, rows = torch.arange(N - T, N, device=device)[:, None], torch.arange(N, device=device)
    if isinstance(choice, Band):
        late = torch.arange(T, device=device)[:, None] >= (T - choice.dense if choice.dense else T)
        return ((rows <= at) & ((rows < choice.sinks) | (at - rows < choice.window) | late)).expand(G, -1, -1)
    if isinstance(choice, Gated):
        return allowed(choice.selected, G, T, N, device) | allowed(Band(0, choice.window), G, T, N, device)
    own = (rows <= at) & (rows // choice.size == at // choice.size)
    if isinstance(choice, Queries):
        before = earlier(choice, T, N).repeat_interleave(choice.size, -1)[..., :N]
        return own | before.expand(G, -1, -1)
    first = (N - T) // choice.size
    mask = visible(choice, G, first, 0, -(-N // choice.size) - first, N)
    mask = torch.nn.functional.pad(mask, (0, N - mask.shape[-1]))
    return own | mask.repeat_interleave(choice.size, 1)[:, N - T - first * choice.size :][:, :T]
