"""How much attention each stored row has received: column sums of the softmax, block by block, never the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from kvledger.cache import softmax
from kvledger.cache.arena import Arena


def column_mass(q: Tensor, keys: Tensor, lse: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """`q` [G, T, D], `keys` [N, D] of which the last T belong to the queries, `lse` [G, T] the normaliser of each query.
    The sum over queries of exp(logit - lse), causal, mean over the group: [N] float32. Memory O(N) and one block."""
    G, T, _ = q.shape
    N, total = len(keys), torch.zeros(len(keys), dtype=torch.float32, device=q.device)
    block = max(1, softmax.LOGITS_AT_ONCE // (G * max(1, N)))
    for t in range(0, T, block):
        part = q[:, t : t + block]
        seen = N - T + t + part.shape[1]  # rows that the last query of the block may see
        logits = (part @ keys[:seen].T).float() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = (logits - lse[:, t : t + block, None].float()).exp()
        total[:seen] += weights.tril_(N - T + t).sum((0, 1)) / G
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
            rows = arena.segment(b * arena.heads + h)
            group = slice(h * G, (h + 1) * G)
            arena.tally[rows] += column_mass(queries[group], arena.k[rows], norms[group], scale, softcap)
