"""Patterns: what the queries of a prompt look at, while everything stays stored (SCBench's stage "generation").

A pattern is a frozen dataclass that answers, for one KV head of one layer, with a choice of `kvledger.cache.masks`.  It is
asked for each chunk of a prompt that is read; a question that follows later, of a few tokens, is read densely, as in the code
of all these papers, and so is every decode step, unless the pattern is an attention of its own (`always`: MoBA, NSA).  In a
chunk the queries are the chunk's, so that an estimate from the last queries is made anew for each; rows are counted as they
are stored, so after an eviction blocks and distances are of rows that are left.  Sink logits and soft caps take part in the
attention; an estimate knows of the cap only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.cache.masks import Choice
from kvledger.methods.base import Shape
from kvledger.methods.rope import Rope
from kvledger.recipe import Row


@dataclass(frozen=True)
class Look:
    """What a pattern sees of one head that stores rows: `queries` [G, T, D] of the last T of its N rows, `keys` [N, D], both
    after RoPE; `heads` are the numbers of the G query heads. `ends`: the prompt ends with these queries, as far as anybody
    knows. `index`: what the pattern's own `index` has made of the rows so far. `values` [N, Dv] and `positions` [N] are of the
    rows; on request `hidden` [T, E], the layer's input at the queries, and `rope`."""

    layer: int
    heads: range
    queries: Tensor
    keys: Tensor
    scale: float
    softcap: float | None = None
    ends: bool = True
    index: Tensor | None = None
    values: Tensor | None = None
    positions: Tensor | None = None
    hidden: Tensor | None = None
    rope: Rope | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """G, T, N."""
        return self.queries.shape[0], self.queries.shape[1], len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Frame of every pattern."""

    row: ClassVar[Row]
    role: ClassVar[str] = "pattern"
    always: ClassVar[bool] = False  # for questions and decode steps, too
    needs: ClassVar[tuple[str, ...]] = ()  # "hidden", "rope"

    def choose(self, look: Look) -> Choice:
        """What each query may see."""
        raise NotImplementedError

    def index(self, look: Look, old: Tensor | None) -> Tensor | None:
        """always: what is kept of the rows of `look` for later queries; `old` is what was kept of the first of them."""
        return None

    def fit(self, shape: Shape) -> None:
        """ValueError if the pattern cannot serve a model of this shape."""

    def at_least(self, **limits: int) -> None:
        """ValueError for an option below its limit."""
        for name, limit in limits.items():
            if getattr(self, name) < limit:
                raise ValueError(f"{name}={getattr(self, name)} is below {limit}")


def last_attention(look: Look, count: int) -> Tensor:
    """Attention weights of the last `count` queries over all rows, causal: [G, W, N] float32."""
    queries = look.queries[:, -count:]
    W, N = queries.shape[1], len(look.keys)
    logits = (queries.float() @ look.keys.float().T).mul_(look.scale)
    if look.softcap is not None:
        logits = logits.div_(look.softcap).tanh_().mul_(look.softcap)
    later = torch.ones(W, N, dtype=torch.bool, device=logits.device).triu(N - W + 1)
    return logits.masked_fill_(later, -torch.inf).softmax(-1)


def by_distance(weights: Tensor) -> Tensor:
    """Sums over the diagonals of the last W queries' `weights` [G, W, N]: [G, N], at s that of rows s before a query."""
    G, W, N = weights.shape
    slanted = torch.nn.functional.pad(weights.flip(1), (0, W)).flatten(1)[:, : W * (N + W - 1)]
    return slanted.view(G, W, N + W - 1).sum(1)[:, :N].flip(1)


def pooled(x: Tensor, size: int, lead: int = 0) -> Tensor:
    """Means over blocks of `size` of `x` [X, n, D], whose first row is number `lead` of its block: [X, blocks, D] float32."""
    n = x.shape[1]
    padding = (lead, -(lead + n) % size)
    sums = torch.nn.functional.pad(x.float(), (0, 0, *padding)).unflatten(1, (-1, size)).sum(2)
    counts = torch.nn.functional.pad(torch.ones(n, device=x.device), padding).view(-1, size).sum(-1)
    return sums / counts[:, None]


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest of each line of `scores` [X, Y] are, as a mask."""
    top = scores.topk(min(count, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, True)
