"""How much attention each stored row has received: column sums of the softmax, block by block, never the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from kvledger.cache.arena import Arena

WEIGHTS_AT_ONCE = 1 << 19  # 2 MB: a block passes through a core's cache several times


def column_mass(q: Tensor, keys: Tensor, lse: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """`q` [G, T, D], `keys` [N, D] of which the last T belong to the queries, `lse` [G, T] the normaliser of each query.
    The sum over queries of exp(logit - lse), causal, mean over the group: [N] float32. Memory O(N) and one block."""
    G, T, _ = q.shape
    N, total = len(keys), torch.zeros(len(keys), dtype=torch.float32, device=q.device)
    block = max(16, WEIGHTS_AT_ONCE // (G * max(1, N)))
    for t in range(0, T, block):
        part = q[:, t : t + block]
        size = part.shape[1]
        seen = N - T + t + size  # rows that the last query of the block may see
        logits = (part @ keys[:seen].T).float().mul_(scale)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        weights = logits.sub_(lse[:, t : t + size, None].float()).exp_()
        weights[..., seen - size :].tril_()
        total[:seen] += weights.sum((0, 1)) / G
    return total


def add_mass(
    q: Tensor,
    arena: Arena,
    lse: Tensor,
    scale: float,
    heads: list[int],
    valid: Tensor | None = None,
    softcap: float | None = None,
) -> None:
    """Add to the tally of each row of `heads` the attention that the new tokens' queries `q` [B, Hq, T, D] paid to it."""
    assert arena.tally is not None
    G = q.shape[1] // arena.heads
    for b in range(q.shape[0]):
        queries, norms = (q[b], lse[b]) if valid is None else (q[b][:, valid[b]], lse[b][:, valid[b]])
        for h in heads:
            s = b * arena.heads + h
            group = slice(h * G, (h + 1) * G)
            arena.tally[arena.segment(s)] += column_mass(
                queries[group], arena.plain(s)[0], norms[group], scale, softcap
            )
