"""Observed attention: the mean attention that each row got from those queries that could see it.

Source: the column means of the attention matrix, as in NVIDIA's kvpress (`ObservedAttentionPress`, Apache-2.0), which are
H2O's sums (arXiv 2306.14048) without their advantage for old rows. Deviation: the matrix is never built; its column sums are
gathered block by block while reading, so chunks and later decode steps count as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(
    Row(
        "observed_attention",
        "compression",
        "head",
        "all queries",
        "arXiv 2306.14048",
        "mean attention a row has received",
    )
)
@dataclass(frozen=True, kw_only=True)
class ObservedAttention(Method):
    tally: ClassVar[str] = "mass"

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally / (view.seen - view.positions)
