"""FlexPrefill: pattern and budget of each head found while reading (Lai et al., 2025, arXiv 2502.20766 §3; code Apache-2.0).

The attention of the last block of queries, pooled by blocks of keys, is compared with what pooled queries and keys estimate of
it. Where the two are near (square root of the Jensen-Shannon divergence below tau), the head is query-aware: of the whole map
of pooled attention, the fewest blocks that hold a share gamma of it. Elsewhere it is vertical-slash, with as many columns and
distances as hold a share gamma of the last queries' attention, rounded to blocks as in the published code.

A block of queries always sees the first block and its own. In chunked reading each chunk estimates for itself. The paper's
experiments also keep at least 1,024 tokens; here `least` counts blocks, and is SCBench's 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.masks import Blocks, Choice
from kvledger.methods.pattern import Look, Pattern, by_distance, largest, last_attention, pooled
from kvledger.recipe import Row, register


@register(
    Row(
        "flexprefill",
        "generation",
        "head",
        "last queries",
        "arXiv 2502.20766",
        "pattern and budget of a head, by its attention mass",
    )
)
@dataclass(frozen=True, kw_only=True)
class FlexPrefill(Pattern):
    """gamma: share of the attention that must be covered. tau: divergence below which a head is query-aware; 0: none is. block:
    queries and rows that are seen together. least: columns and diagonals of blocks at the least."""

    gamma: float = 0.9
    tau: float = 0.1
    block: int = 128
    least: int = 1

    def __post_init__(self) -> None:
        self.at_least(block=1, least=1)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} is outside (0, 1]: it is the share of the attention to cover")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau} is outside [0, 1]: it bounds the root of a divergence, in units of ln 2")

    def choose(self, look: Look) -> Choice:
        G, T, N = look.shape
        first = (N - T) // self.block
        weights = last_attention(look, self.block)
        queries, keys = (
            pooled(look.queries, self.block, N - T - first * self.block),
            pooled(look.keys[None], self.block)[0],
        )
        estimate = (look.queries[:, -self.block :].float().mean(1) @ keys.T * look.scale).softmax(-1)
        mass = in_blocks(weights.mean(1), self.block)
        aware = divergence(estimate, mass) < self.tau
        later = torch.ones(queries.shape[1], len(keys), dtype=torch.bool, device=keys.device).triu(first + 1)
        maps = (queries @ keys.T * look.scale).masked_fill(later, -torch.inf).softmax(-1)
        if self.gamma == 1:
            return Blocks(self.block, ~later[None], scored=float(weights.numel() + maps.numel()))
        seen = torch.stack([
            covering(maps[g].flatten(), self.gamma * len(later)).view_as(later) if aware[g]
            else self.vertical_slash(weights[g], first, len(later))
            for g in range(G)
        ])  # fmt: skip
        seen[..., 0] = True
        return Blocks(self.block, seen & ~later, scored=float(weights.numel() + maps.numel()))

    def vertical_slash(self, weights: Tensor, first: int, rows: int) -> Tensor:
        """Blocks to see by the last queries' attention [W, N]: [blocks of queries, blocks of rows] bool."""
        chosen = []
        for mass in (weights.mean(0), by_distance(weights[None])[0] / len(weights)):
            count = max(self.least, cover_count(mass, self.gamma) // self.block + 1)
            blocks = in_blocks(mass, self.block)
            blocks[0] = torch.inf
            chosen.append(largest(blocks, count))
        columns, distances = chosen
        at = torch.arange(first, first + rows, device=mass.device)[:, None] - torch.arange(
            len(columns), device=mass.device
        )
        return columns | (distances[at.clamp(min=0)] & (at >= 0))


def in_blocks(mass: Tensor, size: int) -> Tensor:
    """Sums of `mass` [..., N] over blocks."""
    return torch.nn.functional.pad(mass, (0, -mass.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence of distributions [G, n], in nats: [G]."""
    middle = (p + q) / 2
    parts = torch.xlogy(p, p / middle).nan_to_num(0.0) + torch.xlogy(q, q / middle).nan_to_num(0.0)
    return (parts.sum(-1) / 2).clamp(min=0).sqrt()


def cover_count(mass: Tensor, share: float) -> int:
    """How many of the largest of `mass` [N], which sums to 1, it takes to exceed `share`."""
    return int((mass.sort(descending=True).values.cumsum(-1) <= share).sum()) + 1


def covering(mass: Tensor, share: float) -> Tensor:
    """The fewest entries of `mass` [n] that sum to `share`, the largest first: [n] bool."""
    values, order = mass.sort(descending=True)
    needed = (values.cumsum(-1) - values < share) & (values > 0)
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(0, order, needed)
