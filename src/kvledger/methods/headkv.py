"""HeadKV (Fu et al., 2024, arXiv 2410.19258; code MIT): heads that retrieve get more rows, by importance measured beforehand.

Of the rows that no head has for sure, each head gets its base, b - b/β, and the b/β of all heads of all layers are shared
out in proportion to importance (§3.2). Inside a head SnapKV's scores choose.

Deviations: importance is measured by this package's own probe (`kvledger probe headkv`), on its own retrieval task, per query
head; a KV head's is the mean of its queries', and a row is stored once. Shares are rounded so that they add up to the budget,
and what a head cannot use, because it holds no more rows, goes to the others.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.allocate import shares
from kvledger.methods.base import Shape, View
from kvledger.methods.importance import Importance, embedded
from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Row, register

RANDOM = "random:"
Table = tuple[tuple[float, ...], ...]


@register(
    Row(
        "headkv",
        "compression",
        "across layers",
        "last queries, probe",
        "arXiv 2410.19258",
        "SnapKV, more for heads that retrieve",
    )
)
@dataclass(frozen=True, kw_only=True)
class HeadKV(SnapKV):
    """importance: a file of `kvledger probe headkv`, "zoo" (the embedded model's), or "random:SEED" (a baseline).
    beta: 1/beta of the budget is shared by importance; 1 shares all of it."""

    importance: str = "zoo"
    beta: float = 1.5  # type: ignore[misc, assignment]

    every_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise ValueError(f"beta={self.beta} is below 1: 1/beta is the fraction shared by importance")
        if self.allocator != "even":
            raise ValueError(
                f"allocator={self.allocator!r} has no place here: headkv shares rows by its importance file"
            )
        if self.importance.startswith(RANDOM) and not self.importance.removeprefix(RANDOM).isdecimal():
            raise ValueError(f"importance={self.importance!r}: a random draw is named by its seed, like 'random:0'")

    @property
    def fingerprint(self) -> str:
        if self.importance.startswith(RANDOM):
            return ""
        return hashlib.sha256(repr(Importance.load(self.importance).scores).encode()).hexdigest()[:12]

    def fit(self, shape: Shape) -> None:
        self._table(shape.layers, shape.heads)

    def _table(self, layers: int, heads: int) -> Table:
        """Importance of each query head. ValueError for a file of a model of another shape."""
        if self.importance.startswith(RANDOM):
            draw = random.Random(self.importance)
            return tuple(tuple(draw.random() for _ in range(heads)) for _ in range(layers))
        table = _scores(self.importance, _stamp(self.importance))
        if (len(table), len(table[0])) != (layers, heads):
            raise ValueError(
                f"the head importance {self.importance!r} is for {len(table)} layers of {len(table[0])} query heads, and here "
                f"are {layers} of {heads}: measure it with `kvledger probe headkv --model … --out FILE`, importance='FILE'"
            )
        return table

    def weights(self, view: View) -> Tensor:
        """Importance of each head that stores rows, the mean over its queries: [L, H] float64."""
        H, G = view.queries.shape[:2]
        return torch.tensor(self._table(view.layers, H * G), dtype=torch.float64).view(view.layers, H, G).mean(-1)

    def allocate(self, scores: Tensor, view: View) -> Tensor:
        fixed = int((scores == torch.inf).sum(-1).max())
        oldest = int(view.positions[view.stored].min())
        most = view.seen - oldest - fixed  # rows that any head of any layer can have among the candidates
        weights = self.weights(view)
        counts = spread(weights.flatten(), max(0, view.budget - fixed), self.beta, most).view_as(weights)
        return shares(scores, counts[view.layer] + fixed)


def spread(weights: Tensor, mean: int, beta: float, most: int) -> Tensor:
    """Rows of n heads, [n] int64: a base of mean - mean/beta each, the rest in proportion to `weights` [n] (evenly, if they are
    all 0), nobody more than `most`. The sum is n·mean, where n·most allows; rounding goes to the largest remainders."""
    n, pool = len(weights), int(mean / beta)
    weights = weights.double() if float(weights.sum()) > 0 else torch.ones(n, dtype=torch.float64)
    want = mean - pool + n * pool * weights / weights.sum()
    for _ in range(n):
        excess = float((want - most).clamp(min=0).sum())
        want = want.clamp(max=most)
        free = weights * (want < most) if bool((weights * (want < most)).any()) else (want < most).double()
        if excess < 1e-6 or not bool(free.any()):
            break
        want = want + excess * free / free.sum()
    counts = (want + 1e-9).floor().long()
    order = (want - counts).sort(descending=True, stable=True).indices
    order = order[counts[order] < most][: min(n * mean, n * most) - int(counts.sum())]
    return counts.index_add(0, order, torch.ones_like(order))


def _stamp(path: str) -> int:
    """Changes with the file, so that a new probe's result is read."""
    file = embedded() if path == "zoo" else path
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _scores(path: str, stamp: int) -> Table:
    return Importance.load(path).scores
