"""Attention of a prompt's queries to chosen rows only: the parts that are not chosen are never computed.

One KV head at a time: `q` [G, T, Dk] are the queries of the last T of its N stored rows, `k` [N, Dk] and `v` [N, Dv].  What
they may see is a choice of `masks.py`.  A block of queries always sees its own block of rows, causally; all it sees before
that needs no mask, so that on a CPU rows are gathered and read by the ordinary fused kernel, and the parts are merged by
their log-sum-exp.  A band is read in strips of queries, whose windows are overlapping views of the rows.  On CUDA `flex.py`
skips what a mask leaves empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from kvledger.cache import flex
from kvledger.cache.masks import Band, Blocks, Choice, Gated, Queries, allowed, band_pairs, cut, earlier, visible
from kvledger.cache.softmax import merge, sdpa
from kvledger.cache.window import window_attention

MASK_AT_ONCE = 1 << 22  # rows marked, one byte each
NUMBERS_AT_ONCE = {"cpu": 1 << 21}  # of gathered keys: 8 MB, near enough to a core's cache
STRIPS = 768, 256  # queries that a window is read in; the CPU's kernel is at its best from 768, and well from 192


def read(
    q: Tensor, k: Tensor, v: Tensor, choice: Choice, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """Output [G, T, Dv], log-sum-exp [G, T] and pairs of `q` [G, T, Dk] over what `choice` lets it see of `k`, `v` [N, D]; of
    `Gated` the log-sum-exp is that over the chosen blocks."""
    if isinstance(choice, Band):
        return _band(q, k, v, choice, scale, softcap)
    if isinstance(choice, Gated):
        return _gated(q, k, v, choice, scale, softcap)
    grid = _Grid(choice.size, q.shape[1], len(k))
    if flex.usable(q):
        return _by_flex(q, k, v, choice, grid, scale, softcap)
    out, lse = _own(q, k, v, grid, scale, softcap)
    if isinstance(choice, Blocks):
        out, lse, pairs = _gathered(q, k, v, out, lse, choice, grid, scale, softcap)
    else:
        out, lse, pairs = _scattered(q, k, v, out, lse, choice, grid, scale, softcap)
    return out, lse, pairs + q.shape[0] * grid.own_pairs


class _Grid:
    """Rows and queries in blocks of `size`: the T queries are those of the last T of N rows."""

    def __init__(self, size: int, T: int, N: int):
        self.size, self.T, self.N = size, T, N
        self.first = (N - T) // size  # block of the first query
        self.blocks = -(-N // size) - self.first
        self.lead = N - T - self.first * size  # rows of that block that are older
        self.tail = (self.first + self.blocks) * size - N

    def laid_out(self, x: Tensor) -> Tensor:
        """[X, T or T + lead, D] padded to blocks: [blocks, X, size, D]."""
        lead = self.lead if x.shape[1] == self.T else 0
        x = torch.nn.functional.pad(x, (0, 0, lead, self.tail))
        return x.unflatten(1, (self.blocks, self.size)).transpose(0, 1)

    def taken_back(self, x: Tensor) -> Tensor:
        """[blocks, X, size, …] without the padding: [X, T, …]."""
        return x.transpose(0, 1).flatten(1, 2)[:, self.lead : self.lead + self.T]

    @property
    def queries(self) -> Tensor:
        """How many there are in each block."""
        n = torch.full((self.blocks,), self.size)
        n[0] -= self.lead
        n[-1] -= self.tail
        return n

    @property
    def own_pairs(self) -> float:
        """Query-key pairs inside the blocks, of one head."""
        place = torch.arange(self.lead, self.lead + self.T) % self.size + 1
        return float(place.sum())


def _own(q: Tensor, k: Tensor, v: Tensor, grid: _Grid, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Each block of queries over its own block of rows."""
    if grid.blocks == 1:
        return _causal(q, k[grid.first * grid.size :], v[grid.first * grid.size :], scale, softcap)
    keys, values = (grid.laid_out(x[None, grid.first * grid.size :]).expand(-1, q.shape[0], -1, -1) for x in (k, v))
    out, lse = sdpa(grid.laid_out(q), keys, values, scale, softcap, causal=True)
    return grid.taken_back(out).contiguous(), grid.taken_back(lse).contiguous()


def _by_flex(
    q: Tensor, k: Tensor, v: Tensor, choice: Blocks | Queries, grid: _Grid, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, float]:
    """By FlexAttention, as many blocks of queries at a time as their mask allows."""
    parts, pairs = [], 0.0
    step = max(1, MASK_AT_ONCE * 256 // (q.shape[0] * grid.N * grid.size))
    for block in range(0, grid.blocks, step):
        start, stop = (max(0, b * grid.size - grid.lead) for b in (block, block + step))
        stop, N = min(stop, grid.T), min(grid.N, (grid.first + block + step) * grid.size)
        sees = allowed(
            cut(choice, slice(block, block + step), slice(start, stop)), q.shape[0], stop - start, N, q.device
        )
        parts.append(flex.attend(q[:, start:stop], k[:N], v[:N], sees, scale, softcap))
        pairs += float(sees.sum())
    return torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1), pairs


# ---- a band ----------------------------------------------------------------------------------------------------------


def _band(
    q: Tensor, k: Tensor, v: Tensor, band: Band, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, float]:
    T, N = q.shape[1], len(k)
    cut = max(0, T - band.dense) if band.dense else T
    early = min(cut, max(0, band.window - (N - T)))  # queries whose window reaches the first row
    parts = []
    if early:
        parts.append(_causal(q[:, :early], k[: N - T + early], v, scale, softcap))
    parts += [
        _strips(q[:, t:stop], k[: N - T + stop], v[: N - T + stop], band, scale, softcap)
        for t, stop in _pieces(early, cut, N - T, band)
    ]
    if cut < T:
        parts.append(_causal(q[:, cut:], k, v, scale, softcap))
    out, lse = torch.cat([out for out, _ in parts], 1), torch.cat([lse.to(parts[0][1].dtype) for _, lse in parts], 1)
    return out, lse, q.shape[0] * band_pairs(T, N, band)


def _pieces(start: int, stop: int, before: int, band: Band) -> Iterator[tuple[int, int]]:
    """Queries `start` … `stop` cut where the window leaves the sinks behind, and where whole strips end."""
    clear = min(stop, max(start, band.window + band.sinks - before))
    strip = _strip(band.window) or 1
    edges = [start, clear, clear + (stop - clear) // strip * strip, stop]
    return ((a, b) for a, b in itertools.pairwise(edges) if a < b)


def _strip(window: int) -> int:
    """Queries of a strip: few beside the window, since all rows at its ends are computed for all of them; 0 for none."""
    return next((strip for strip in STRIPS if strip * 3 <= window), 0)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """The last queries over all rows up to themselves."""
    G, T, N = q.shape[0], q.shape[1], len(k)
    k, v = (x[None, None, :N].expand(-1, G, -1, -1) for x in (k, v))
    out, lse = sdpa(q[None], k[:, :, N - T :], v[:, :, N - T :], scale, softcap, causal=True)
    if N > T:
        out, lse = merge(out, lse, *sdpa(q[None], k[:, :, : N - T], v[:, :, : N - T], scale, softcap))
    return out[0], lse[0]


def _strips(q: Tensor, k: Tensor, v: Tensor, band: Band, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Queries in strips, each over its own rows, over what all its windows reach, over what some do, and over the sinks: a call
    each for all strips, on views of the rows that overlap. Only what some windows reach needs a mask."""
    G, T, N, window, strip = q.shape[0], q.shape[1], len(k), band.window, _strip(band.window)
    if not strip or T % strip or window + band.sinks > N - T or q.device.type != "cpu":
        out, lse = window_attention(q[None], k[None, None], v[None, None], N - 1, band.sinks, window, scale, softcap)
        return out[0], lse[0]

    def rows(x: Tensor, first: int, count: int) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        step = x.stride(0)
        size, stride = (T // strip, G, count, x.shape[-1]), (strip * step, 0, step, 1)
        return x.as_strided(size, stride, x.storage_offset() + (N - T + first) * step)

    blocks = q.unflatten(1, (T // strip, strip)).transpose(0, 1)
    out, lse = sdpa(blocks, rows(k, 0, strip), rows(v, 0, strip), scale, softcap, causal=True)
    some = torch.ones(strip, strip, dtype=torch.bool, device=q.device).triu()
    for first, count, mask in ((1 - window, strip, some), (strip + 1 - window, window - strip - 1, None)):
        out, lse = merge(
            out, lse, *sdpa(blocks, rows(k, first, count), rows(v, first, count), scale, softcap, mask=mask)
        )
    if band.sinks:
        keys, values = (x[None, None, : band.sinks].expand(T // strip, G, -1, -1) for x in (k, v))
        out, lse = merge(out, lse, *sdpa(blocks, keys, values, scale, softcap))
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def _gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    choice: Blocks,
    grid: _Grid,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, float]:
    """Add the rows before the own block: for each block of queries, a list of rows of its own."""
    G, size, N, pairs = q.shape[0], grid.size, grid.N, 0.0
    blocks = [grid.laid_out(x).transpose(0, 1) for x in (q, out, lse[..., None])]  # [G, blocks, size, …]
    step = max(1, MASK_AT_ONCE // (G * N))
    limit = NUMBERS_AT_ONCE.get(q.device.type, 1 << 26)
    for start in range(0, grid.blocks, step):
        stop = min(start + step, grid.blocks)
        mask = visible(choice, G, grid.first, start, stop, N)
        counts = mask.sum(-1)
        pairs += float((counts.cpu() * grid.queries[start:stop]).sum())
        queries, outs, sums = (x[:, start:stop].flatten(0, 1).clone() for x in blocks)
        for who, rows, bias in _lists(mask.flatten(0, 1), counts.flatten(), limit // k.shape[-1]):
            near, far = (x.index_select(0, rows.flatten()).view(len(who), 1, -1, x.shape[-1]) for x in (k, v))
            more = sdpa(queries[who][:, None], near, far, scale, softcap, mask=bias)
            one, total = merge(outs[who], sums[who][..., 0], more[0][:, 0], more[1][:, 0].to(sums.dtype))
            outs[who], sums[who] = one, total[..., None]
        blocks[1][:, start:stop], blocks[2][:, start:stop] = (
            outs.view(G, -1, size, v.shape[-1]),
            sums.view(G, -1, size, 1),
        )
    out, lse = (grid.taken_back(x.transpose(0, 1)) for x in blocks[1:])
    return out, lse[..., 0], pairs


def _lists(mask: Tensor, counts: Tensor, limit: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The rows marked in `mask` [P, N], in groups of lists of like lengths and no more than about `limit` rows: which of the P,
    rows [p, L] and, where lists are shorter than the longest, a mask [p, 1, 1, L] of what is real."""
    order = counts.argsort(descending=True)
    lengths = counts[order].tolist()
    at = 0
    while at < len(lengths) and lengths[at]:
        L = lengths[at]
        stop = min(at + max(1, limit // L), len(lengths))
        while lengths[stop - 1] * 4 < L * 3:  # padding: a quarter at most
            stop -= 1
        who = order[at:stop]
        marked = mask[who].nonzero()
        real = torch.arange(L, device=mask.device) < counts[who][:, None]
        rows = marked.new_zeros(len(who), L)
        rows[real] = marked[:, 1]
        yield who, rows, None if lengths[stop - 1] == L else real[:, None, None]
        at = stop


# ---- queries ---------------------------------------------------------------------------------------------------------


def _scattered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    choice: Queries,
    grid: _Grid,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, float]:
    """Add the rows before the own block: for each block of rows, the queries that see it."""
    G, T, _ = q.shape
    seen = earlier(choice, T, grid.N).expand(G, -1, -1)
    which = seen.permute(2, 0, 1).flatten(1).nonzero()  # by block of rows
    counts = torch.bincount(which[:, 0], minlength=seen.shape[-1]).tolist()
    queries, out, lse = q.flatten(0, 1), out.flatten(0, 1), lse.flatten()
    for block, who in enumerate(which[:, 1].split(counts)):
        if len(who):
            rows = slice(block * grid.size, (block + 1) * grid.size)
            more = sdpa(queries[who][None, None], k[None, None, rows], v[None, None, rows], scale, softcap)
            out[who], lse[who] = merge(out[who], lse[who], more[0][0, 0], more[1][0, 0].to(lse.dtype))
    return out.view(G, T, -1), lse.view(G, T), float(sum(counts) * grid.size)


# ---- three branches --------------------------------------------------------------------------------------------------


def _gated(
    q: Tensor, k: Tensor, v: Tensor, choice: Gated, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, float]:
    chosen, lse, pairs = read(q, k, v, choice.selected, scale, softcap)
    near, _, more = read(q, k, v, Band(0, choice.window), scale, softcap)
    coarse, few = _summaries(q, choice, len(k), v.shape[-1], scale, softcap)
    gates = choice.gates[..., None].to(chosen.dtype)
    return gates[0] * coarse.to(chosen.dtype) + gates[1] * chosen + gates[2] * near, lse, pairs + more + few


def _summaries(
    q: Tensor, choice: Gated, N: int, width: int, scale: float, softcap: float | None
) -> tuple[Tensor, float]:
    """Attention of each query to the runs that are complete, [G, T, Dv] (zero where none is), and the pairs it took."""
    G, T, D = q.shape
    known = ((torch.arange(N - T, N, device=q.device) - choice.compress + 1) // choice.stride + 1).clamp(0)
    known = known.clamp(max=len(choice.runs))
    out, late = q.new_zeros(G, T, width), int((known == 0).sum())
    if late < T:
        runs = choice.runs[None, None].expand(1, G, -1, -1)
        mask = torch.arange(len(choice.runs), device=q.device) < known[late:, None]
        asked = q[None, :, late:].to(torch.promote_types(q.dtype, runs.dtype))
        found, _ = sdpa(asked, runs[..., :D].to(asked), runs[..., D:].to(asked), scale, softcap, mask=mask)
        out[:, late:] = found[0].to(q.dtype)
    return out, float(G * int(known.sum()))
