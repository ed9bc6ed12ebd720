"""TOVA (Oren et al., 2024, arXiv 2401.06104): what the last query, averaged over all heads, attends to least goes.

All heads of a layer keep the same rows. Deviation: it acts when the prompt or a chunk has been read; the paper also evicts
one row at each decode step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View, window_attention
from kvledger.recipe import Row, register


@register(Row("tova", "compression", "layer", "last query", "arXiv 2401.06104", "rows that the last query looks at"))
@dataclass(frozen=True, kw_only=True)
class TOVA(Method):
    window: ClassVar[int] = 1

    def score(self, view: View) -> Tensor:
        return window_attention(view, kernel=1, pool="avg").mean(0, keepdim=True).expand(view.shape)
