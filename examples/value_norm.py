"""A method of one's own in one file: keep the rows with the largest values.

    kvledger run --recipes full "examples.value_norm.ValueNorm(keep=0.3)" --tasks scbench/kv --out results
"""

from dataclasses import dataclass

from torch import Tensor

from kvledger import Method, View


@dataclass(frozen=True, kw_only=True)
class ValueNorm(Method):
    """power: the norm's exponent changes nothing in the order, and is here to show an option."""

    power: float = 1.0

    def score(self, view: View) -> Tensor:
        return view.values.float().norm(dim=-1) ** self.power  # [H, N]: higher is kept
