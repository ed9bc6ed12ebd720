"""Allocators: given scores [H, N] and a budget, who gets how much. Ties go to the earlier row.

`recent` [N] marks rows that stay in every head; they count against the budget, and where they alone exceed it the latest
of them win.  Each returns a mask [H, N] whose sum is exactly `H · budget` (where that many rows exist).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _protected(scores: Tensor, recent: Tensor, budget: int) -> Tensor:
    """Scores with the last `budget` recent rows lifted above all others and any further recent row sunk below."""
    order = recent.nonzero().squeeze(-1)
    scores = scores.clone()
    scores[:, order] = -torch.inf
    if budget:
        scores[:, order[-budget:]] = torch.inf
    return scores


def _top(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` best of the last axis, ties to the earlier."""
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(-1, chosen, True)


def uniform(scores: Tensor, recent: Tensor, budget: int) -> Tensor:
    """The same number of rows in every head."""
    return _top(_protected(scores, recent, budget), budget)


def across_heads(scores: Tensor, recent: Tensor, budget: int, floor: float) -> Tensor:
    """AdaKV (arXiv 2407.11550) §3: the heads of a layer share `H · budget` rows, best scores first; each head is sure of
    `floor` of its even share. Heads really end up with different lengths."""
    scores = _protected(scores, recent, budget)
    H, N = scores.shape
    fixed = min(int(recent.sum()), budget)
    sure = uniform_floor = fixed + int(floor * (budget - fixed))
    mask = _top(scores, sure)
    rest = min(H * budget - H * uniform_floor, int((~mask).sum()))
    pool = scores.masked_fill(mask, -torch.inf).flatten()
    return mask | _top(pool, rest).view(H, N) if rest else mask


def pyramid(budget: int, fixed: int, candidates: int, layer: int, layers: int, beta: int) -> int:
    """PyramidKV (arXiv 2406.02069): rows of `layer`, falling linearly with depth; the mean over layers is `budget` to
    within the floor of the step.

    `fixed` rows of the budget (the window) are the same everywhere.  As in the published code a layer whose fair share is
    at least half of the candidates gets just its fair share, so that above keep 0.5 this is SnapKV.
    """
    free = budget - fixed
    if layers == 1 or free <= 0 or candidates < 2 * free:
        return budget
    least = free // beta
    most = 2 * free - least
    if most >= candidates - fixed:
        most = candidates - fixed
        least = 2 * free - most
    return fixed + most - layer * ((most - least) // (layers - 1))
