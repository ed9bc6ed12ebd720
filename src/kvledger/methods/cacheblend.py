"""CacheBlend (Yao et al., 2025, arXiv 2405.16444; Apache-2.0): chunks encoded apart, and the few tokens that need it again.

Each chunk of the context is read alone, so that its keys and values could be those of another request; what its tokens would
have seen of the chunks before is missing.  Then the first layers are read in full, the tokens whose keys and values differ most
from the stored ones in layer `layer` are chosen, and only those are read through all layers, over what is stored, and take
their rows' place (§4.2, §4.3); `hf/blend.py` does it.  SCBench's settings (arXiv 2412.10319): chunks of 512 tokens, 15 %
recomputed.

Deviations: tokens are chosen once, as the authors' code does, where the paper narrows them down layer by layer; the deviation
is the squared distance of keys and values together (the authors' code: of values).  A session by itself reads every chunk, so
its ledger shows the whole price.  `kvledger.Prefixes` keeps chunks between requests, and turns their keys to where they stand
in the next one (§5); chunks of `chunk` tokens are found again only where they are cut alike: documents want a `separator`.
The last tokens of a context (one, or as many queries as the compression method looks at) are read over all the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.base import Shape
from kvledger.recipe import Recipe, Row, name_of, register


@register(Row("cacheblend", "retrieval", "token", "-", "arXiv 2405.16444", "chunks read apart, some tokens recomputed"))
@dataclass(frozen=True, kw_only=True)
class CacheBlend:
    """recompute: the fraction of the tokens that are read again, in [0, 1]; 1 is exact. chunk: tokens of a chunk. separator: if
    given, chunks begin behind it instead. layer: whose rows are compared; those up to it are all recomputed."""

    recompute: float = 0.15
    chunk: int = 512
    separator: str = ""
    layer: int = 1

    row: ClassVar[Row]
    role: ClassVar[str] = "source"
    blends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.recompute <= 1:
            raise ValueError(f"recompute={self.recompute} is outside [0, 1]: it is the recomputed fraction")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} is less than a token")
        if self.layer < 1:
            raise ValueError(
                f"layer={self.layer}: in layer 0 no row depends on other tokens, so 1 is the first to compare"
            )

    def fit(self, shape: Shape) -> None:
        if self.layer >= shape.layers:
            raise ValueError(
                f"layer={self.layer} of cacheblend: the model has {shape.layers} layers with rows, counted from 0"
            )

    def check(self, recipe: Recipe) -> None:
        """ValueError for parts that would have to watch each token being read."""
        method, profile = recipe.method, recipe.profile
        rivals = [recipe.pattern, profile if profile is not None and profile.drops else None]
        if method.drops and (method.when == "chunk" or method.tally in ("mass", "rate") or method.learns):
            rivals.append(method)
        for part in rivals:
            if part is not None:
                raise ValueError(
                    f"cacheblend reads chunks apart and some tokens twice, and {name_of(part)} acts while tokens are read: "
                    "take a method that looks at the prompt's end, as snapkv does"
                )

    def starts(self, stop: int, behind: Iterable[int]) -> list[int]:
        """Where chunks of the first `stop` tokens begin; `behind` are the tokens behind a separator."""
        if not self.separator:
            return list(range(0, stop, self.chunk))
        return sorted({0, *(place for place in behind if place < stop)})

    def choose(self, deviation: Tensor) -> Tensor:
        """The tokens to recompute, ascending: those of the largest deviation [N], the earlier of equals."""
        count = floor(self.recompute * len(deviation) + 1e-9)
        return torch.sort(deviation, descending=True, stable=True).indices[:count].sort().values
