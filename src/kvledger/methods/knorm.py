"""L2 norm of keys (Devoto et al., 2024, arXiv 2406.11430): keys of small norm attract attention, so they stay.

Deviation: all layers are compressed; the paper's code leaves the first two whole, where the norm says little.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(Row("knorm", "compression", "head", "keys", "arXiv 2406.11430", "keys of small norm"))
@dataclass(frozen=True, kw_only=True)
class KNorm(Method):
    def score(self, view: View) -> Tensor:
        return -view.keys.float().norm(dim=-1)
