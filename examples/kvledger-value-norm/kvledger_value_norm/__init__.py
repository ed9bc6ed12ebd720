"""Keep the rows with the largest values. An example, not a published method.

Any scorer works with any budget, allocator and schedule of the frame: value_norm(rows=512, every=64, allocator='heads').
"""

from dataclasses import dataclass

from torch import Tensor

from kvledger import Method, View
from kvledger.recipe import Row, register


@register(Row("value_norm", "compression", "head", "values", "-", "rows with large values"))
@dataclass(frozen=True, kw_only=True)
class ValueNorm(Method):
    """order: of the norm."""

    order: float = 2.0

    def score(self, view: View) -> Tensor:
        return view.values.float().norm(p=self.order, dim=-1)  # [H, N]: higher is kept
