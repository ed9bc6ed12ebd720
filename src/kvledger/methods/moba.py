"""MoBA: mixture of block attention (Lu et al., 2025, arXiv 2502.13189 §2; code MIT).

Rows are cut into blocks; each query sees its own block, up to itself, and those earlier blocks whose mean key has the largest
products with it, `top` blocks in all. It is the model's attention, so questions and decode steps follow it too: the mean keys
are kept beside the rows, and a decode step reads the chosen blocks only. The paper's models are trained with it (blocks of 512
and 3 of them in its scaling study; 4,096 and 12 at a million tokens); here it runs on a model that was not. Deviation: after an
eviction blocks are of the rows that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.cache.masks import Choice, Queries
from kvledger.methods.pattern import Look, Pattern
from kvledger.recipe import Row, register


@register(
    Row(
        "moba",
        "generation",
        "head",
        "all queries",
        "arXiv 2502.13189",
        "each query sees the blocks whose mean key suits it",
    )
)
@dataclass(frozen=True, kw_only=True)
class MoBA(Pattern):
    """block: rows of a block. top: blocks that a query sees, its own among them."""

    block: int = 512
    top: int = 3

    always: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.at_least(block=1, top=1)

    def index(self, look: Look, old: Tensor | None) -> Tensor:
        """Mean keys of the blocks that are complete: [N // block, D] float32."""
        keys, done = look.keys, 0 if old is None else len(old)
        new = (
            keys[done * self.block : len(keys) // self.block * self.block]
            .float()
            .unflatten(0, (-1, self.block))
            .mean(1)
        )
        return new if old is None else torch.cat([old, new])

    def choose(self, look: Look) -> Choice:
        G, T, N = look.shape
        means = self.index(look, None) if look.index is None else look.index
        own = torch.arange(N - T, N, device=means.device)[:, None] // self.block
        later = torch.arange(len(means), device=means.device) >= own
        gates = (look.queries.float() @ means.T).masked_fill(later, -torch.inf)
        best = gates.topk(min(self.top - 1, len(means)), -1).indices
        seen = torch.zeros(G, T, -(-N // self.block), dtype=torch.bool, device=means.device).scatter_(-1, best, True)
        seen[..., : len(means)] &= ~later
        return Queries(self.block, seen, scored=float(gates.numel()))
