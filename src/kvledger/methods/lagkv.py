"""LagKV (Liang et al., 2025, arXiv 2504.04704; code Apache-2.0): rows unlike those that came just after them stay.

After the sinks, tokens fall into blocks of `lag`. Keys and values of a block are normalised, channel by channel, by the least
and the greatest of the block after it; the standard deviation over channels, softmax over the block, mean of keys and values,
is what a row is worth (§3). Each block gives up the same share, worst rows first. The last full block, which nothing can
judge yet, and what follows it stay; where the budget is less than that, the most recent of it.

Deviations: blocks are counted by true positions, so chunks and earlier evictions do not shift them; what was dropped from
the next block no longer counts as its least or greatest; where heads compete, the scores themselves do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(Row("lagkv", "compression", "head", "keys, values", "arXiv 2504.04704", "rows unlike the block after them"))
@dataclass(frozen=True, kw_only=True)
class LagKV(Method):
    """lag: tokens in a block. sinks: the first tokens, which stay."""

    lag: int = 128
    sinks: int = 4  # type: ignore[misc]

    among: ClassVar[str] = "all"  # a block is judged when the next one is full, which may be in a later chunk

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 1:
            raise ValueError(f"lag={self.lag}: a block has at least one token")

    def score(self, view: View) -> Tensor:
        """Recent rows in (1, 2], judged ones at minus their rank in their block, or by their scores where heads compete."""
        block = (view.positions - self.sinks).div(self.lag, rounding_mode="floor").masked_fill(~view.stored, -1)
        last = (view.seen - self.sinks) // self.lag - 1  # the last full block: it judges, and is not judged
        scores = (self.information(view.keys, block) + self.information(view.values, block)) / 2
        if self.allocator in ("even", "pyramid"):
            scores = -ranks(scores, block).float() / self.lag
        return torch.where(block < last, scores, 1 + (view.positions + 1) / view.seen)

    def information(self, rows: Tensor, block: Tensor) -> Tensor:
        """Of `rows` [H, N, D] in blocks `block` [H, N]: softmax over the block of the standard deviation of what is left when
        the next block's range is taken out, [H, N] float32. Anything where there is no next block."""
        rows, slot = rows.float(), block.clamp(min=-1) + 1
        bounds = rows.new_zeros(rows.shape[0], int(slot.max()) + 2, rows.shape[-1])
        index = slot[..., None].expand_as(rows)
        low = bounds.scatter_reduce(1, index, rows, "amin", include_self=False).gather(1, index + 1)
        high = bounds.scatter_reduce(1, index, rows, "amax", include_self=False).gather(1, index + 1)
        spread = ((rows - low) / (high - low).clamp(min=1e-6)).std(-1, correction=1)
        peak = bounds[..., 0].scatter_reduce(1, slot, spread, "amax", include_self=False)
        weight = (spread - peak.gather(1, slot)).exp()
        total = torch.zeros_like(peak, dtype=torch.float64).scatter_add(1, slot, weight.double())  # order must not show
        return weight / total.gather(1, slot).float()


def ranks(scores: Tensor, block: Tensor) -> Tensor:
    """The place of each row within its block, the best is 0, ties to the earlier row: [H, N]."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, block.gather(-1, order).sort(dim=-1, stable=True).indices)
    grouped = block.gather(-1, order)
    place = torch.arange(scores.shape[-1], device=scores.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(order).scatter_(-1, order, place)
