"""Readers: attention of new queries over an arena, on any device, through PyTorch's SDPA.

Contract of every reader: the rows of the `T` new tokens are already the last ones of their segments; each query sees all
older rows of its KV head and the new ones up to itself.  Heads with a window see their first tokens and their last ones only,
in the middle of a chunk as at its end.

A single token on a CPU is read by `native.py` and a chunk by `chunks.py`, all heads in one pass.  Elsewhere decode folds the
`G` queries of a KV head into the query axis (no key is repeated), and heads of equal length and even spacing share one call;
where there are fewer of them than threads, they are cut into pieces.  A chunk attends to the old rows without a mask and to
itself causally, and the two parts are merged by their log-sum-exp.  `reference` is the same in ten plain lines and is what the
tests compare with.

An arena may hold its rows in several regions, and not as numbers (`formats.py`): regions are read apart and merged likewise,
codes by the C or CUDA reader as they are, else block by block, so that no more than `BLOCK` rows are ever unpacked at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvledger.cache import chunks, kernels, native
from kvledger.cache.arena import Arena, Region
from kvledger.cache.chunks import Windows
from kvledger.cache.softmax import merge, sdpa
from kvledger.cache.spans import decode_spans, in_blocks, join, wide
from kvledger.cache.window import window_attention

SHORTEST = 512  # rows of a piece that is worth a call


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    arena: Arena,
    scale: float,
    valid: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    windows: Windows | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of `q` [B, Hq, T, Dk]; `k`, `v` [B, H, T, D] are the new rows as just appended. Output [B, Hq, T, Dv] and
    log-sum-exp [B, Hq, T].

    `valid` [B, T] bool: real tokens (padding queries get zeros). `sinks` [Hq]: learned logits that take part in the
    softmax without a value (gpt-oss). `softcap`: logits become `softcap·tanh(logits / softcap)` (Gemma 2).
    """
    if valid is None and q.shape[2] == 1 and softcap is None and all(native.usable(q, r.k, r.v) for r in arena.regions):
        return weigh_sinks(*decode_spans(q, arena, visible(arena, windows), scale), sinks)
    if valid is None:
        return weigh_sinks(*_read(q, k, v, arena, 0, scale, softcap, windows), sinks)
    result, total = q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_zeros(q.shape[:3], dtype=wide(q))
    for b in range(q.shape[0]):
        real = valid[b]
        one = [x[b : b + 1, :, real] for x in (q, k, v)]
        part, lse = weigh_sinks(*_read(one[0], one[1], one[2], arena, b, scale, softcap, windows), sinks)
        result[b : b + 1, :, real], total[b : b + 1, :, real] = part, lse.to(total.dtype)
    return result, total


def weigh_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """A sink logit adds exp(sink) to the normaliser and nothing to the sum."""
    if sinks is None:
        return out, lse
    logit = sinks[None, :, None].to(lse.dtype)
    return out * torch.sigmoid(lse - logit)[..., None].to(out.dtype), torch.logaddexp(lse, logit)


def visible(arena: Arena, windows: Windows | None) -> list[int]:
    """What the youngest token sees, as spans: segment, first row, rows; two spans where rows between sinks and window wait to
    be dropped."""
    spans: list[int] = []
    for s, (start, n) in enumerate(zip(arena.start, arena.length)):
        window = windows[s % arena.heads] if windows else None
        if window is None:
            spans += (s, start, n)
            continue
        first = min(window[0], arena.seen[s // arena.heads], n)
        last = min(window[1], n - first)
        spans += (s, start, n) if first + last == n else (s, start, first, s, start + n - last, last)
    return spans


def _read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    arena: Arena,
    first: int,
    scale: float,
    softcap: float | None,
    windows: Windows | None,
) -> tuple[Tensor, Tensor]:
    """`q` [b, Hq, T, Dk] of the sequences `first`, `first` + 1, …: heads that see all together, heads with a window apart."""
    b, Hq, T, _ = q.shape
    H = arena.heads
    if T == 0:
        return q.new_zeros(b, Hq, 0, v.shape[-1]), q.new_zeros(b, Hq, 0)
    if kernels.usable(q) and arena.by_row and kernels.reads(arena.regions[0][:2]):
        from kvledger.cache.kernels.read import read  # late: it needs Triton

        return read(q, arena, first, scale, softcap, windows)
    if T > 1 and chunks.usable(q, arena, softcap):
        return chunks.read(q, arena, scale, windows, first)[:2]
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for h in range(H):
        groups.setdefault(windows[h] if windows else None, []).append(h)
    grouped = q.reshape(b, H, Hq // H, T, -1)
    if list(groups) == [None]:
        out, lse = _dense(grouped, k, v, arena, list(range(first * H, (first + b) * H)), scale, softcap)
        return out.reshape(b, Hq, T, -1), lse.reshape(b, Hq, T)
    out, lse = q.new_empty(b, H, Hq // H, T, v.shape[-1]), q.new_empty(b, H, Hq // H, T, dtype=wide(q))
    for window, heads in groups.items():
        segments = [(first + i) * H + h for i in range(b) for h in heads]
        if window is None:
            part, part_lse = _dense(grouped[:, heads], k[:, heads], v[:, heads], arena, segments, scale, softcap)
        else:
            part, part_lse = _windowed(grouped[:, heads], arena, segments, scale, softcap, window)
        out[:, heads] = part.view(b, len(heads), *part.shape[1:])
        lse[:, heads] = part_lse.view(b, len(heads), *part_lse.shape[1:]).to(lse.dtype)
    return out.view(b, Hq, T, -1), lse.view(b, Hq, T)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, arena: Arena, segments: list[int], scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`q` [b, h, G, T, Dk] of `segments` over all their rows: output [b·h, G, T, Dv] and log-sum-exp."""
    q = q.flatten(0, 1)
    _, G, T, _ = q.shape
    if T == 1:
        out, lse = _over_rows(q.transpose(1, 2), arena, segments, 0, scale, softcap)
        return out.transpose(1, 2), lse.transpose(1, 2)
    new = [_expand(x.reshape(len(segments), 1, T, -1), G) for x in (k, v)]
    out, lse = sdpa(q, new[0], new[1], scale, softcap, causal=True)
    if any(arena.length[s] > T for s in segments):
        out, lse = merge(out, lse, *_over_rows(q, arena, segments, T, scale, softcap))
    return out, lse


def _windowed(
    q: Tensor, arena: Arena, segments: list[int], scale: float, softcap: float | None, window: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`q` [b, h, G, T, Dk] of heads that see their first and their last tokens."""
    parts, at, H = [], 0, arena.heads
    q = q.flatten(0, 1)
    regions = arena.regions
    for b in sorted({s // H for s in segments}):  # what a window reaches depends on how far its sequence has come
        mine = [s for s in segments if s // H == b]
        for run in equal_runs(regions[0], mine) if _as_is(regions) else [range(s, s + 1) for s in mine]:
            rows = _rows(regions[0], run, 0, q.shape[1]) if _as_is(regions) else _unpacked(arena, run.start, q.shape[1])
            parts.append(window_attention(q[at : at + len(run)], *rows, arena.seen[b] - 1, *window, scale, softcap))
            at += len(run)
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _over_rows(
    q: Tensor, arena: Arena, segments: list[int], skip: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`q` [s, X, Y, Dk] over all but the last `skip` rows of each segment, without a mask."""
    regions = arena.regions
    out, lse = _over_region(q, regions[-1], segments, skip, scale, softcap)
    for region in regions[:-1]:
        out, lse = join(out, lse, *_over_region(q, region, segments, 0, scale, softcap))
    return out, lse


def _over_region(
    q: Tensor, region: Region, segments: list[int], skip: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    parts, at = [], 0
    as_is = _as_is([region])
    for run in equal_runs(region, segments) if as_is else [range(s, s + 1) for s in segments]:
        some = q[at : at + len(run)]
        if as_is:
            read = sdpa if skip or q.shape[1] > 1 else _in_pieces
            parts.append(read(some, *_rows(region, run, skip, q.shape[1]), scale, softcap))
        else:
            parts.append(in_blocks(some, region, run.start, skip, scale, softcap))
        at += len(run)
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _unpacked(arena: Arena, s: int, heads: int) -> tuple[Tensor, Tensor]:
    k, v = arena.plain(s)
    return _expand(k[None, None], heads), _expand(v[None, None], heads)


def _as_is(regions: Sequence[Region]) -> bool:
    """Whether rows are numbers in one buffer."""
    return len(regions) == 1 and isinstance(regions[0].k, Tensor) and isinstance(regions[0].v, Tensor)


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """`sdpa` of one token's queries [s, 1, G, D]: the CPU's kernel gives each head to one thread, so where heads are fewer than
    threads, long ones are cut."""
    pieces = -(-torch.get_num_threads() // len(q))
    size = k.shape[2] // pieces
    if q.device.type != "cpu" or pieces == 1 or size < SHORTEST:
        return sdpa(q, k, v, scale, softcap)
    cut_k, cut_v = (x[:, 0, : pieces * size].unflatten(1, (pieces, size)) for x in (k, v))
    parts = [sdpa(q.expand(-1, pieces, -1, -1), cut_k, cut_v, scale, softcap)]
    if k.shape[2] > pieces * size:
        parts.append(sdpa(q, k[:, :, pieces * size :], v[:, :, pieces * size :], scale, softcap))
    out, lse = torch.cat([out for out, _ in parts], 1), torch.cat([lse for _, lse in parts], 1)
    total = lse.logsumexp(1, keepdim=True)
    return ((lse - total).exp()[..., None].to(out.dtype) * out).sum(1, keepdim=True), total


def equal_runs(region: Region | Arena, segments: Sequence[int]) -> list[range]:
    """Neighbouring segments of equal length and even spacing: each run is one strided view of the buffers."""
    runs: list[range] = []
    for s in segments:
        if runs and s == runs[-1].stop:
            run = runs[-1]
            first, gap = run.start, region.start[s] - region.start[s - 1]
            even = len(run) == 1 or gap == region.start[first + 1] - region.start[first]
            if even and gap >= region.length[s] and region.length[s] == region.length[first]:
                runs[-1] = range(first, s + 1)
                continue
        runs.append(range(s, s + 1))
    return runs


def _rows(region: Region, run: range, skip: int, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a run of segments as [s, heads, N, D], repeated over `heads` with stride 0."""
    first = run.start
    gap = region.start[first + 1] - region.start[first] if len(run) > 1 else 0
    n = region.length[first] - skip

    def view(buffer: Tensor) -> Tensor:
        D = buffer.shape[-1]
        return buffer.as_strided(
            (len(run), heads, n, D), (gap * D, 0, D, 1), buffer.storage_offset() + region.start[first] * D
        )

    assert isinstance(region.k, Tensor)
    assert isinstance(region.v, Tensor)
    return view(region.k), view(region.v)


def _expand(x: Tensor, heads: int) -> Tensor:
    return x.expand(-1, heads, -1, -1)


def reference(q: Tensor, arena: Arena, scale: float) -> Tensor:
    """The contract, head by head, with the mask written out. Slow; for tests (no padding, no sinks, no softcap)."""
    B, Hq, T, _ = q.shape
    G = Hq // arena.heads
    out = q.new_zeros(B, Hq, T, arena.plain(0)[1].shape[-1])
    for b in range(B):
        for head in range(Hq):
            s = b * arena.heads + head // G
            keys, values = arena.plain(s)
            position, now = arena.positions(s), torch.arange(arena.seen[b] - T, arena.seen[b], device=q.device)
            logits = (q[b, head] @ keys.T * scale).masked_fill(position[None] > now[:, None], -torch.inf)
            out[b, head] = logits.softmax(-1) @ values
    return out
