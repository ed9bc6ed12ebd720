"""What a method sees (`View`), and what it is made of: a scorer, an allocator, a schedule.

A method is a frozen dataclass.  It answers two questions about the candidate rows of one layer of one sequence: what is
each worth (`score`), and who gets how much of the budget (`allocate`).  When it is asked, which rows are candidates, what
is protected and how the rows are dropped is the frame's business (`kvledger.hf`), once for all methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods import allocate
from kvledger.recipe import Row


@dataclass(frozen=True)
class View:
    """The candidate rows of one layer of one sequence, at the moment when some of them must go.

    `keys` [H, N, Dk] (after RoPE), `values` [H, N, Dv], `positions` [N] token indices, ascending; `queries`
    [H, G, W, Dk] are the last W queries (after RoPE) at `query_positions` [W].  Where heads="query", H counts query heads
    and G is 1.  `recent` [N] bool marks rows that must stay; `budget` is the mean number of rows a head may keep.
    """

    layer: int
    layers: int
    keys: Tensor
    values: Tensor
    positions: Tensor
    queries: Tensor
    query_positions: Tensor
    scale: float
    recent: Tensor
    budget: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.keys.shape[0], self.keys.shape[1]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Frame of every compression method.

    keep: kept fraction of the candidate rows, in (0, 1]. when: "prompt" drops once, when the prompt has been read;
    "chunk" drops after each chunk, among that chunk's rows. heads: "kv" stores a row once per KV head; "query" once per
    query head, as several papers' code does, at G times the bytes.
    """

    keep: float = 0.25
    when: str = "prompt"
    heads: str = "kv"

    row: ClassVar[Row]
    window: ClassVar[int] = 0  # how many last queries `score` needs; those tokens' own rows are kept
    among: ClassVar[str] = "new"  # candidates while reading in chunks: the "new" rows, or "all" that are stored

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is outside (0, 1]: it is the kept fraction")
        if self.when not in ("prompt", "chunk"):
            raise ValueError(f"when={self.when!r} is not 'prompt' or 'chunk'")
        if self.heads not in ("kv", "query"):
            raise ValueError(f"heads={self.heads!r} is not 'kv' or 'query'")
        if self.window < 0:
            raise ValueError(f"window={self.window} is negative")

    def score(self, view: View) -> Tensor:
        """What each candidate is worth: [H, N] float32, higher is better."""
        raise NotImplementedError

    def allocate(self, scores: Tensor, view: View) -> Tensor:
        """Which candidates stay: [H, N] bool. Uniform over heads unless a method says otherwise."""
        return allocate.uniform(scores, view.recent, view.budget)

    def select(self, view: View) -> Tensor:
        """Score and allocate. The mask [H, N]."""
        return self.allocate(self.score(view).float(), view)

    def rows(self, candidates: int) -> int:
        """Rows a head may keep of `candidates` (mean over heads and layers): the kept fraction, at least one."""
        return max(1, floor(self.keep * candidates + 1e-9))


def window_attention(view: View, kernel: int, pool: str) -> Tensor:
    """Attention mass that the last W queries put on each candidate, smoothed over neighbours: [H, N].

    softmax(q·k·scale) in float32 with a causal mask, summed over the W queries, pooled over the rows that are not recent
    (zero padding, counted), mean over the G queries that share a KV head.  SnapKV (arXiv 2404.14469) §4; the order of
    pooling and group mean does not matter for average pooling and follows the published code for maximum pooling.
    """
    logits = (view.queries.float() @ view.keys.float().transpose(-1, -2)[:, None]) * view.scale
    later = view.positions[None, :] > view.query_positions[:, None]
    mass = logits.masked_fill(later, -torch.inf).softmax(-1).nan_to_num(0.0).sum(-2)
    prefix = int((~view.recent).sum())
    smooth = torch.nn.functional.avg_pool1d if pool == "avg" else torch.nn.functional.max_pool1d
    if prefix:
        mass[..., :prefix] = smooth(mass[..., :prefix], kernel, stride=1, padding=kernel // 2)[..., :prefix]
    return mass.mean(1)
