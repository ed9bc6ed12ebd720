"""NSA: native sparse attention (Yuan et al., 2025, arXiv 2502.11089 §3).

Three branches: keys compressed over runs of `compress` rows every `stride`; the `select` blocks of `block` rows that the
compressed attention points to, the first and the two nearest among them, one choice for all query heads of a KV head; and a
window. It is the model's attention, so questions and decode steps follow it too.

A model that was not trained with it has no compressor and no gates. So here keys are compressed to their mean, which serves to
select (equations 8-10 of the paper), the compressed branch has no output, and one softmax runs over selected blocks and window
together, instead of a gated sum: with all blocks selected it is the model's own attention. Deviations: the window is rounded up
to blocks; after an eviction blocks are of the rows that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.cache.masks import Choice, Queries
from kvledger.methods.pattern import Look, Pattern
from kvledger.recipe import Row, register

LOGITS_AT_ONCE = 1 << 21  # later runs than a slab's own are left out
NEAR = 2  # blocks, a query's own among them, that are always selected, besides the first


@register(
    Row(
        "nsa",
        "generation",
        "KV head",
        "all queries",
        "arXiv 2502.11089",
        "selected blocks and a window, without trained gates",
    )
)
@dataclass(frozen=True, kw_only=True)
class NSA(Pattern):
    """compress, stride: rows that are compressed to one, and how far apart they begin. block: rows of a block. select: blocks
    that a query sees. window: rows up to itself that it sees besides, in whole blocks."""

    compress: int = 32
    stride: int = 16
    block: int = 64
    select: int = 16
    window: int = 512

    always: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.at_least(stride=1, select=1 + NEAR, window=0)
        for name in ("compress", "block"):
            if getattr(self, name) < 1 or getattr(self, name) % self.stride:
                raise ValueError(f"{name}={getattr(self, name)} is no multiple of stride={self.stride}")

    def index(self, keys: Tensor, old: Tensor | None) -> Tensor:
        """Compressed keys of the runs that are complete: [(N - compress) // stride + 1, D] float32."""
        done = 0 if old is None else len(old)
        rest = keys[done * self.stride :].float()
        if len(rest) < self.compress:
            return rest.new_zeros(0, keys.shape[-1]) if old is None else old
        new = rest.unfold(0, self.compress, self.stride).mean(-1)
        return new if old is None else torch.cat([old, new])

    def choose(self, look: Look) -> Choice:
        G, T, N = look.shape
        runs = self.index(look.keys, None) if look.index is None else look.index
        step = max(1, LOGITS_AT_ONCE // (G * max(1, len(runs))))
        parts, scored = [], 0
        for t in range(0, T, step):
            queries = look.queries[:, t : t + step]
            known = runs[: max(0, N - T + t + queries.shape[1] - self.compress) // self.stride + 1]
            parts.append(self._select(queries, known, N - T + t, -(-N // self.block), look.scale))
            scored += G * queries.shape[1] * len(known)
        return Queries(self.block, torch.cat(parts)[None], scored=float(scored))

    def _select(self, queries: Tensor, runs: Tensor, first: int, blocks: int, scale: float) -> Tensor:
        """Blocks that the queries [G, t, D] of the rows `first`, … see: [t, blocks] bool."""
        at = torch.arange(first, first + queries.shape[1], device=runs.device)[:, None]
        complete = torch.arange(len(runs), device=runs.device) * self.stride + self.compress - 1 <= at
        logits = (queries.float() @ runs.T).mul_(scale).masked_fill_(~complete, -torch.inf)
        worth = importance(
            logits.softmax(-1).nan_to_num_(0.0), blocks, self.compress // self.stride, self.block // self.stride
        )
        number, own = torch.arange(blocks, device=runs.device), at // self.block
        forced = (number == 0) | ((own - number >= 0) & (own - number < NEAR))
        ranked = worth.sum(0).masked_fill(forced, torch.inf).masked_fill(number > own, -torch.inf)
        best = ranked.topk(min(self.select, blocks), -1).indices
        chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, best, True)
        return (chosen | (own - number <= -(-self.window // self.block))) & (number <= own)


def importance(weights: Tensor, blocks: int, units: int, per: int) -> Tensor:
    """Attention to compressed runs [G, t, C], each of `units` strides and beginning one after the other, as attention to
    `blocks` of `per` strides: each run counts in a block as often as it has strides there (equation 9). [G, t, blocks]."""
    C = weights.shape[-1]
    strides = weights.new_zeros(*weights.shape[:-1], max(blocks * per, C + units))
    for unit in range(units):
        strides[..., unit : unit + C] += weights
    return strides[..., : blocks * per].unflatten(-1, (blocks, per)).sum(-1)
