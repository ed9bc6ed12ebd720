"""Exact attention of streaming heads: attention sinks and a sliding window (StreamingLLM, arXiv 2309.17453 §3.2).

One function serves training, reading and decoding, so that a head which keeps `sinks + window` rows sees the same tokens in
all of them: a query at position p attends to the `sinks` first positions and to the `window` last ones, p among them.
Memory is linear in tokens: queries go in blocks, and a block meets only the sink rows and the rows its windows reach.

This differs from the code of PruLong (arXiv 2506.17121), whose window is rounded to blocks of 128 keys in training and whose
first chunk is dense at inference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvledger.cache.softmax import sdpa

SHORT, LONG = 128, 512  # bounds on a block of queries: long enough to fill a kernel, short beside the window


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    last: int,
    sinks: int,
    window: int,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [s, X, T, Dv] and log-sum-exp [s, X, T] of causal sink-and-window attention; differentiable in `q`, `k`, `v`.

    `q` [s, X, T, Dk] are the queries of positions last-T+1 … last. `k`, `v` [s, X or 1, N, D]: first the min(sinks, last+1)
    rows of positions 0, 1, …, then rows of consecutive positions that end with `last`; with nothing dropped, rows 0 … last.
    Allowed are rows with pos_k <= pos_q and (pos_k < sinks or pos_q - pos_k < window). The log-sum-exp carries no gradient
    where a fused kernel computes it.
    """
    T, heads = q.shape[2], q.shape[1]
    k, v = k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)
    block = min(max(window // 2, SHORT), LONG)
    parts = [
        _block(q[:, :, t : t + block], k, v, last - T + 1 + t, last, sinks, window, scale, softcap)
        for t in range(0, T, block)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _block(
    q: Tensor, k: Tensor, v: Tensor, first: int, last: int, sinks: int, window: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The queries of positions first, first+1, …: the sink rows and the rows that their windows reach."""
    stop = first + q.shape[2]
    anchors = min(sinks, last + 1)  # sink rows that are stored
    tail = last + 1 - (k.shape[2] - anchors)  # position of the first row behind them
    low, high = max(first - window + 1, tail), max(stop, tail)
    anchors_seen = min(anchors, stop)
    rows = [x[:, :, anchors + low - tail : anchors + high - tail] for x in (k, v)]
    if anchors_seen and low == anchors_seen:  # the two touch in position and in memory: one slice
        rows = [x[:, :, :high] for x in (k, v)]
    elif anchors_seen:
        rows = [torch.cat([x[:, :, :anchors_seen], near], 2) for x, near in zip((k, v), rows)]
    mask = None
    if q.shape[2] > 1:
        at = torch.arange(first, stop, device=q.device)[:, None]
        pos = torch.cat([torch.arange(anchors_seen, device=q.device), torch.arange(low, high, device=q.device)])
        mask = (pos <= at) & ((pos < sinks) | (at - pos < window))
    return _masked(q, rows[0], rows[1], scale, softcap, mask)


def _masked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """On CUDA the memory-efficient kernel, which takes a mask and returns the log-sum-exp; elsewhere `sdpa`."""
    if q.device.type != "cuda" or softcap is not None or q.dtype == torch.float64:
        return sdpa(q, k, v, scale, softcap, mask=mask)
    bias = None
    if mask is not None:
        bias = q.new_zeros(mask.shape[0], -(-mask.shape[1] // 16) * 16)[
            :, : mask.shape[1]
        ]  # rows aligned, as it demands
        bias = bias.masked_fill_(~mask, -torch.inf).expand(*q.shape[:2], -1, -1)
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)
    return out, lse[..., : q.shape[2]]
