"""Readers of chosen rows, in whatever form they are stored: spans of rows for one token, and blocks unpacked one at a time.

Codes that the C reader knows are read as they are.  Others are unpacked, no more than `BLOCK` rows at a time, attended with
PyTorch's kernels, and the parts are joined by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvledger.cache import native
from kvledger.cache.arena import Arena, Region
from kvledger.cache.formats import raw, turned, turned_back
from kvledger.cache.native import Spans
from kvledger.cache.softmax import sdpa

BLOCK = 2048  # rows that are unpacked at a time


def decode_spans(
    q: Tensor, arena: Arena, spans: Spans, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one token's queries `q` [B, Hq, 1, Dk] over chosen rows only, however they are stored. Output [B, Hq, 1, Dv]
    and log-sum-exp [B, Hq, 1]; a segment of which no row is chosen gets 0 and -inf.

    `spans`, a list or an int64 tensor, says which rows, three numbers a span: segment, first row as `Arena.segment` counts,
    rows. Spans of a segment follow each other.
    """
    grouped, regions = q.reshape(len(arena.start), -1, q.shape[-1]), arena.regions
    if regions[0].start is arena.start:  # its rows are the arena's
        out, lse = _read_spans(grouped, regions[0], spans, scale, softcap)
    else:
        out, lse = _nothing(grouped, regions[0])
        for region, part in _by_region(arena, spans):
            if part:
                out, lse = join(out, lse, *_read_spans(grouped, region, part, scale, softcap))
    return out.view(*q.shape[:3], -1), lse.view(q.shape[:3])


def _by_region(arena: Arena, spans: Spans) -> list[tuple[Region, list[int]]]:
    """The spans of each region, in its own rows."""
    parts: list[tuple[Region, list[int]]] = [(region, []) for region in arena.regions]
    spans = spans.tolist() if isinstance(spans, Tensor) else spans
    for s, first, n in zip(spans[::3], spans[1::3], spans[2::3]):
        at = first - arena.start[s]
        for region, part in parts:
            lo, hi = max(at, 0), min(at + n, region.length[s])
            if lo < hi:
                part += (s, region.start[s] + lo, hi - lo)
            at -= region.length[s]
    return parts


def _read_spans(q: Tensor, region: Region, spans: Spans, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """`q` [S, G, Dk] over `spans` of a region: output [S, G, Dv] and log-sum-exp [S, G]."""
    if softcap is None and native.usable(q, region.k, region.v):
        return native.decode(q, region.k, region.v, spans, scale)
    q = turned(q, region.k)
    out, lse = _nothing(q, region)
    for s, rows in _portions(spans):
        k, v = (torch.cat([raw(x, one, q.dtype) for one in rows])[None, None] for x in (region.k, region.v))
        part, part_lse = sdpa(q[None, None, s], k, v, scale, softcap)
        out[s], lse[s] = join(out[s], lse[s], part[0, 0], part_lse[0, 0])
    return turned_back(out, region.v), lse


def _nothing(q: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of `q` [..., Dk] over no rows."""
    return q.new_zeros(*q.shape[:-1], region.v.shape[-1]), q.new_full(q.shape[:-1], -torch.inf, dtype=wide(q))


def _portions(spans: Spans) -> Iterator[tuple[int, list[slice]]]:
    """Rows of one segment, `BLOCK` of them together at most."""
    s, rows = -1, 0
    held: list[slice] = []
    spans = spans.tolist() if isinstance(spans, Tensor) else spans
    for of, first, n in zip(spans[::3], spans[1::3], spans[2::3]):
        for a in range(first, first + n, BLOCK):
            more = min(BLOCK, first + n - a)
            if held and (of != s or rows + more > BLOCK):
                yield s, held
                held, rows = [], 0
            s, held, rows = of, [*held, slice(a, a + more)], rows + more
    if held:
        yield s, held


def join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """`merge`, where both may have seen nothing."""
    share = torch.sigmoid((lse - other_lse).nan_to_num(0.0))[..., None].to(out.dtype)
    return torch.lerp(other, out, share), torch.logaddexp(lse, other_lse)


def in_blocks(
    q: Tensor, region: Region, s: int, skip: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`q` [1, X, Y, Dk] over all but the last `skip` rows of segment `s`, unpacked a block at a time."""
    q = turned(q, region.k)
    out, lse = _nothing(q, region)
    for _, rows in _portions([s, region.start[s], region.length[s] - skip]):
        k, v = (raw(x, rows[0], q.dtype)[None, None].expand(-1, q.shape[1], -1, -1) for x in (region.k, region.v))
        out, lse = join(out, lse, *sdpa(q, k, v, scale, softcap))
    return turned_back(out, region.v), lse


def wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
