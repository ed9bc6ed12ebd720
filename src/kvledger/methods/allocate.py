"""Allocators: given scores [H, N] and a budget, who gets how much. Ties go to the earlier row.

A score of +inf marks a row that stays in any case and counts against the budget; -inf one that cannot stay (or must not, while
anything else is left).  Each returns a mask [H, N] whose sum is exactly `H · budget`, where that many rows exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def shares(scores: Tensor, counts: Tensor) -> Tensor:
    """The `counts[h]` best rows of each head. `scores` [H, N], `counts` [H] -> [H, N] bool."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    return rank < counts[:, None].to(rank.device)


def even(scores: Tensor, budget: int) -> Tensor:
    """The same number of rows in every head."""
    return shares(scores, torch.full((len(scores),), budget))


def across_heads(scores: Tensor, budget: int, floor: float) -> Tensor:
    """AdaKV (arXiv 2407.11550) §3: the heads of a layer share `H · budget` rows, best scores first; each head is sure of
    `floor` of its even share. Heads really end up with different lengths."""
    H, N = scores.shape
    total = min(H * budget, int((scores > -torch.inf).sum()))
    fixed = (scores == torch.inf).sum(-1).clamp(max=budget)
    sure = fixed + (floor * (budget - fixed)).int()
    mask = shares(scores, sure) & (scores > -torch.inf)
    return mask | _best(scores.masked_fill(mask, -torch.inf).flatten(), total - int(mask.sum())).view(H, N)


def across_layers(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """All heads of all layers share `heads · budget` rows, best scores first (KVzip, arXiv 2505.23416): masks like `scores`."""
    flat = torch.cat([layer.flatten().to(scores[0].device) for layer in scores])  # a layer may live on another device
    rows = min(sum(len(layer) for layer in scores) * budget, int((flat > -torch.inf).sum()))
    masks = _best(flat, rows).split([layer.numel() for layer in scores])
    return [mask.view_as(layer).to(layer.device) for mask, layer in zip(masks, scores)]


def _best(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` best of [N], ties to the earlier."""
    chosen = scores.sort(descending=True, stable=True).indices[: max(0, count)]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(-1, chosen, True)


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


def _falling(scores: Tensor, view: Any, floor: float, beta: int) -> Tensor:
    fixed = min(int((scores == torch.inf).sum(-1).max()), view.budget)
    return even(scores, pyramid(view.budget, fixed, scores.shape[1], view.layer, view.layers, beta))


ALLOCATORS: dict[str, Callable[[Tensor, Any, float, int], Tensor]] = {
    "even": lambda scores, view, floor, beta: even(scores, view.budget),
    "heads": lambda scores, view, floor, beta: across_heads(scores, view.budget, floor),
    "layers": lambda scores, view, floor, beta: across_layers([scores], view.budget)[0],
    "pyramid": _falling,
}
