"""KVzap (Jegou and Jeblick, 2026, arXiv 2601.07891; code Apache-2.0): a small network foretells KVzip's verdict.

It reads a layer's input (after its norm) at a token and gives, for each KV head, the logarithm of the token's KVzip+ score:
how much the model would look at it when repeating its context, times ‖W_o v‖ over the norm of the input there (`kvzip.py`).
Rows below `threshold` go once they are `delay` tokens old (§3), while reading and, with every=m, while writing. The network is
linear, or of two layers with GELU and a hidden width of an eighth of the input's; `kvledger train kvzap` makes it.

Deviations: without `threshold` (the paper's is around -4) the `keep` best of all rows stay, so that budgets can be compared, of
all heads and layers together, as under one threshold (peaks and long answers are bounded head by head with allocator="even");
where the budget binds, rows that are too young take at most half of it. The paper fits the linear network by ridge regression.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.methods.dms import DMS
from kvledger.recipe import Row, register


@register(
    Row(
        "kvzap",
        "compression",
        "head",
        "trained scorer",
        "arXiv 2601.07891",
        "rows that a network thinks KVzip keeps",
    )
)
@dataclass(frozen=True, kw_only=True)
class KVzap(DMS):
    """path: a file of `kvledger train kvzap`, "zoo/NAME" (embedded), or "random:SEED" (an untrained one, as a floor).
    threshold: rows with scores (natural logarithms) below it go, however many those are, and `keep` is but an upper bound
    (1: none); 0 means no threshold. delay: how old a row must be before it goes."""

    path: str = "zoo/kvzap"
    delay: int = 128
    allocator: str = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path='' names no scorer: kvzap needs one (dms can do without)")
