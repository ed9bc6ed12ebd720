"""ChunkKV (Liu et al., 2025, arXiv 2502.00299): whole chunks of consecutive tokens stay, so that phrases stay whole.

A chunk is worth the mean of its rows' SnapKV votes over all heads of the layer, so the heads keep the same chunks (Algorithm
1; NVIDIA's kvpress, Apache-2.0, has the authors' default of 20 tokens, the paper 10). Deviations: the budget is spent to the
row, the last chunk by its first rows, where the code keeps a whole number of chunks; rows of the window, which stay anyhow,
have no say in their chunk's worth; chunks are counted by true positions; no layer takes over another's choice ("index reuse").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvledger.methods.base import View
from kvledger.methods.snapkv import SnapKV
from kvledger.recipe import Row, register


@register(Row("chunkkv", "compression", "layer", "last queries", "arXiv 2502.00299", "whole chunks by SnapKV's votes"))
@dataclass(frozen=True, kw_only=True)
class ChunkKV(SnapKV):
    """length: tokens in a chunk."""

    length: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"length={self.length}: a chunk has at least one token")

    def score(self, view: View) -> Tensor:
        chunk = view.positions.clamp(min=0) // self.length
        voted = (view.stored & ~view.recent).double()  # so that the order of summation does not show
        sums = voted.new_zeros(2, int(chunk.max()) + 1)
        sums[0].index_add_(0, chunk.flatten(), (super().score(view) * voted).flatten())
        sums[1].index_add_(0, chunk.flatten(), voted.flatten())
        return (sums[0] / sums[1].clamp(min=1))[chunk].float()
