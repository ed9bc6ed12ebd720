"""Readers: attention of new queries over an arena, on any device, through PyTorch's SDPA.

Contract of every reader: the rows of the `T` new tokens are already the last ones of their segments; each query sees all
older rows of its KV head and the new ones up to itself.  Returns [B, Hq, T, Dv].

Decode folds the `G` queries of a KV head into the query axis (no key is repeated); a chunk attends to the old rows without
a mask and to itself causally, and the two parts are merged by their log-sum-exp.  Heads of equal length and even spacing
share one call.  `reference` is the same in ten plain lines and is what the tests compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvledger.cache.arena import Arena

LOGITS_AT_ONCE = (
    1 << 26
)  # of the written-out softmax (256 MB in float32): long chunks go through it in blocks of queries


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    arena: Arena,
    scale: float,
    valid: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of `q` [B, Hq, T, Dk]; `k`, `v` [B, H, T, D] are the new rows as just appended.

    `valid` [B, T] bool: real tokens (padding queries get zeros). `sinks` [Hq]: learned logits that take part in the
    softmax without a value (gpt-oss). `softcap`: logits become `softcap·tanh(logits / softcap)` (Gemma 2).
    """
    if valid is None:
        out, lse = _read(q, k, v, arena, range(len(arena.start)), scale, softcap)
        return _weigh_sinks(out, lse, sinks)
    result = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b in range(q.shape[0]):
        real = valid[b]
        segments = range(b * arena.heads, (b + 1) * arena.heads)
        part, lse = _read(
            q[b : b + 1, :, real], k[b : b + 1, :, real], v[b : b + 1, :, real], arena, segments, scale, softcap
        )
        result[b : b + 1, :, real] = _weigh_sinks(part, lse, sinks)
    return result


def _weigh_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """A sink logit adds exp(sink) to the normaliser and nothing to the sum."""
    if sinks is None:
        return out
    return out * torch.sigmoid(lse - sinks[None, :, None].to(lse.dtype))[..., None].to(out.dtype)


def _read(
    q: Tensor, k: Tensor, v: Tensor, arena: Arena, segments: range, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`q` [b, Hq, T, Dk] of the sequences that own `segments`; returns output and log-sum-exp [b, Hq, T]."""
    b, Hq, T, _ = q.shape
    G = Hq // arena.heads
    if T == 0:
        return q.new_zeros(b, Hq, 0, v.shape[-1]), q.new_zeros(b, Hq, 0)
    grouped = q.reshape(b * arena.heads, G, T, -1)
    if T == 1:
        out, lse = _over_rows(grouped.transpose(1, 2), arena, segments, 0, scale, softcap)
        return out.transpose(1, 2).reshape(b, Hq, T, -1), lse.transpose(1, 2).reshape(b, Hq, T)
    new = _expand(k.reshape(b * arena.heads, 1, T, -1), G), _expand(v.reshape(b * arena.heads, 1, T, -1), G)
    out, lse = sdpa(grouped, *new, scale, softcap, causal=True)
    if any(arena.length[s] > T for s in segments):
        out, lse = merge(out, lse, *_over_rows(grouped, arena, segments, T, scale, softcap))
    return out.reshape(b, Hq, T, -1), lse.reshape(b, Hq, T)


def _over_rows(
    q: Tensor, arena: Arena, segments: range, skip: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """`q` [s, X, Y, Dk] over all but the last `skip` rows of each segment, without a mask."""
    parts = [
        sdpa(
            q[run.start - segments.start : run.stop - segments.start],
            *_rows(arena, run, skip, q.shape[1]),
            scale,
            softcap,
        )
        for run in equal_runs(arena, segments)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def equal_runs(arena: Arena, segments: range) -> list[range]:
    """Neighbouring segments of equal length and even spacing: each run is one strided view of the buffers."""
    runs: list[range] = []
    for s in segments:
        if runs:
            run = runs[-1]
            first, gap = run.start, arena.start[s] - arena.start[s - 1]
            even = len(run) == 1 or gap == arena.start[first + 1] - arena.start[first]
            if even and gap >= arena.length[s] and arena.length[s] == arena.length[first]:
                runs[-1] = range(first, s + 1)
                continue
        runs.append(range(s, s + 1))
    return runs


def _rows(arena: Arena, run: range, skip: int, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a run of segments as [s, heads, N, D], repeated over `heads` with stride 0."""
    first = run.start
    gap = arena.start[first + 1] - arena.start[first] if len(run) > 1 else 0
    n = arena.length[first] - skip

    def view(buffer: Tensor) -> Tensor:
        D = buffer.shape[-1]
        return buffer.as_strided(
            (len(run), heads, n, D), (gap * D, 0, D, 1), buffer.storage_offset() + arena.start[first] * D
        )

    return view(arena.k), view(arena.v)


def _expand(x: Tensor, heads: int) -> Tensor:
    return x.expand(-1, heads, -1, -1)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention output and log-sum-exp of `q` [s, X, T, Dk] over `k`, `v` [s, X, N, D]; zero rows give lse = -inf."""
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    if softcap is None and q.device.type == "cpu" and k.shape[-1] == v.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, lse
    block = max(1, LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [
        _explicit(q[:, :, t : t + block], k, v, scale, softcap, t if causal else None)
        for t in range(0, q.shape[2], block)
    ]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, first: int | None
) -> tuple[Tensor, Tensor]:
    """The softmax written out. `first`: row of `k` that belongs to the first query; later rows are masked (None: no mask)."""
    logits = (q @ k.transpose(-1, -2)).to(torch.float64 if q.dtype == torch.float64 else torch.float32) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if first is not None:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(first + 1)
        logits = logits.masked_fill(later, -torch.inf)
    lse = logits.logsumexp(-1)
    return (logits - lse[..., None]).exp().to(v.dtype) @ v, lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Join two attention results over disjoint rows: softmax weights follow from their log-sum-exp."""
    total = torch.logaddexp(lse, other_lse)
    joined = out * (lse - total).exp()[..., None].to(out.dtype) + other * (other_lse - total).exp()[..., None].to(
        out.dtype
    )
    return joined, total


def reference(q: Tensor, arena: Arena, scale: float) -> Tensor:
    """The contract, head by head, with the mask written out. Slow; for tests (no padding, no sinks, no softcap)."""
    B, Hq, T, _ = q.shape
    G = Hq // arena.heads
    out = q.new_zeros(B, Hq, T, arena.v.shape[-1])
    for b in range(B):
        for head in range(Hq):
            s = b * arena.heads + head // G
            rows = arena.segment(s)
            position, now = arena.positions(s), torch.arange(arena.seen[b] - T, arena.seen[b], device=q.device)
            logits = (q[b, head] @ arena.k[rows].T * scale).masked_fill(position[None] > now[:, None], -torch.inf)
            out[b, head] = logits.softmax(-1) @ arena.v[rows]
    return out
