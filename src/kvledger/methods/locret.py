"""Locret (Huang et al., 2024, arXiv 2410.01805; code Apache-2.0): a small network foretells what answers will look at.

From a token's queries, keys and values of all heads of a layer (before RoPE, as in the code) it gives, for each KV head, the
causal importance: the greatest attention logit that any query of an answer will have with the token (§3.1). Of all that is
stored the best stay after each chunk, so that the context is read in a bounded cache; the last rows are kept as stabilizers,
for scores alone would tear holes into what was just said (§3.2). `kvledger train locret` makes the network: two layers,
SiLU (the model's own activation in the code) between them.

Deviations: the budget is a fraction unless `rows` says otherwise (the paper: 6,000 rows, 2,500 stabilizers, chunks of 3,072);
stabilizers take at most half of it. The second layer has a bias, which starts at the mean; the code's has none. Where a model
normalises queries and keys, the network sees them normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods import scorerfile
from kvledger.methods.base import Fresh, Method, Shape, View
from kvledger.methods.dms import predicted, spared
from kvledger.recipe import Row, register


@register(
    Row(
        "locret",
        "compression",
        "head",
        "trained scorer",
        "arXiv 2410.01805",
        "rows that, a network thinks, answers need",
    )
)
@dataclass(frozen=True, kw_only=True)
class Locret(Method):
    """path: a file of `kvledger train locret`, "zoo/NAME" (embedded), or "random:SEED" (an untrained one, as a floor).
    stabilizers: the last rows, which stay."""

    when: str = "chunk"
    path: str = "zoo/locret"
    stabilizers: int = 64

    tally: ClassVar[str] = "rate"
    among: ClassVar[str] = "all"
    needs: ClassVar[tuple[str, ...]] = ("rope", "whole")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stabilizers < 0:
            raise ValueError(f"stabilizers={self.stabilizers} is negative: it is a number of rows")
        scorerfile.check_path(self.path)

    @property
    def fingerprint(self) -> str:
        return scorerfile.digest(self.path)

    def fit(self, shape: Shape) -> None:
        inputs = (shape.heads + 2 * shape.kv_heads) * shape.dim
        scorerfile.fitting(self.path, "locret", shape.layers, shape.kv_heads, inputs, torch.device("cpu"))

    def rate(self, fresh: Fresh) -> Tensor:
        return predicted(self.path, "locret", fresh, joined(fresh))

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally

    def guarded(self, view: View) -> Tensor:
        return super().guarded(spared(view, self.stabilizers))


def joined(fresh: Fresh) -> Tensor:
    """What the network reads, [T, (Hq + Hkv)·Dk + Hkv·Dv]: queries and keys before RoPE, and values, head after head."""
    assert fresh.whole is not None
    assert fresh.rope is not None
    queries, keys, values = fresh.whole
    parts = (fresh.rope.back(queries, fresh.positions), fresh.rope.back(keys, fresh.positions), values)
    return torch.cat([x.transpose(0, 1).flatten(1).float() for x in parts], dim=-1)
