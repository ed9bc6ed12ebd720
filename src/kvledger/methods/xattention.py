"""XAttention: blocks are worth the sums along their antidiagonals (Xu et al., 2025, arXiv 2503.16428 §2; code MIT).

Keys are taken in runs of `stride`, queries in runs in reverse, so that one product of two runs is a sum along an antidiagonal,
and each antidiagonal of a block is met. Softmax over the runs, sums over blocks; each block of queries then sees the fewest
blocks that hold a share `threshold` of it, the first block and its own among them. A block of queries chooses for itself, so
reading in chunks that are multiples of the block gives the same choice. Deviations: runs that reach past the last row count as
they are (the code pads keys to 16,384 and masks them); thresholds are one for all heads, not searched for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.masks import Blocks, Choice
from kvledger.methods.pattern import Look, Pattern
from kvledger.recipe import Row, register

LOGITS_AT_ONCE = 1 << 21  # later keys than a slab's own are left out


@register(
    Row(
        "xattention",
        "generation",
        "head",
        "all queries",
        "arXiv 2503.16428",
        "blocks whose antidiagonals hold the attention",
    )
)
@dataclass(frozen=True, kw_only=True)
class XAttention(Pattern):
    """threshold: share of the estimated attention that a block of queries sees. stride: of the antidiagonals that are summed.
    block: queries and rows that are seen together, a multiple of the stride."""

    threshold: float = 0.9
    stride: int = 8
    block: int = 128

    def __post_init__(self) -> None:
        self.at_least(stride=1, block=1)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is outside (0, 1]: it is the share of the attention to see")
        if self.block % self.stride:
            raise ValueError(f"block={self.block} is no multiple of stride={self.stride}")

    def choose(self, look: Look) -> Choice:
        mass, scored = self.estimate(look)
        _, T, N = look.shape
        first = (N - T) // self.block
        at = torch.arange(first, first + mass.shape[1], device=mass.device)[:, None]
        blocks = torch.arange(mass.shape[2], device=mass.device)
        return Blocks(
            self.block,
            thresholded(mass, (blocks == 0) | (blocks == at), self.threshold) & (blocks <= at),
            scored=scored,
        )

    def estimate(self, look: Look) -> tuple[Tensor, float]:
        """Estimated attention of blocks of queries to blocks of rows, [G, blocks of queries, blocks of rows] float32, and the
        query-key products that it took."""
        G, T, N = look.shape
        first, S, size = (N - T) // self.block, self.stride, self.block
        tail = -N % size
        keys = torch.nn.functional.pad(look.keys, (0, 0, 0, tail)).unflatten(0, (-1, S)).flatten(1)
        queries = torch.nn.functional.pad(look.queries, (0, 0, N - T - first * size, tail)).unflatten(1, (-1, S))
        queries = queries.flip(2).flatten(2)
        real = torch.nn.functional.pad(look.queries.new_ones(T), (N - T - first * size, tail)).view(-1, S).any(-1)
        step = max(1, LOGITS_AT_ONCE // (G * len(keys)) // (size // S)) * (size // S)
        parts, scored = [], 0.0
        for start in range(0, queries.shape[1], step):
            begin = first * size // S + start
            stop = begin + len(queries[0, start : start + step])
            logits = (queries[:, start : start + step] @ keys[:stop].T).float().mul_(look.scale / S)
            later = torch.ones(logits.shape[1:], dtype=torch.bool, device=keys.device).triu(begin + 1)
            weights = logits.masked_fill_(later, -torch.inf).softmax(-1) * real[start : start + step, None]
            mass = weights.unflatten(2, (-1, size // S)).sum(-1).unflatten(1, (-1, size // S)).sum(2)
            parts.append(torch.nn.functional.pad(mass, (0, len(keys) * S // size - mass.shape[2])))
            scored += logits.numel() * S
        return torch.cat(parts, 1), scored


def thresholded(mass: Tensor, forced: Tensor, threshold: float) -> Tensor:
    """Of each line of `mass` [G, X, Y], the fewest entries that hold a share `threshold` of it, the largest first after the
    `forced` [X, Y]: bool."""
    ranked = torch.where(forced, torch.inf, mass)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    values = mass.gather(-1, order)
    if threshold == 1:  # whatever rounding says
        return torch.ones_like(mass, dtype=torch.bool)
    needed = values.cumsum(-1) - values < threshold * mass.sum(-1, keepdim=True)
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, order, needed) | forced
