"""DMS (Łańcucki et al., 2025, arXiv 2506.05345): what goes is decided when a row is stored, and done when it has grown old.

A row's score is fixed by its own token alone and kept with the row; so long as it is younger than `delay` tokens it is read in
any case, and what it says can be taken over by others (§3.1). Nothing is judged twice, so a long prompt is read in a bounded
cache (when="chunk") and a long answer written in one (every=m).

Deviations: the model is not retrained to emit the decision; a row's score is minus the norm of its key (arXiv 2406.11430), or
that of a scorer trained by `kvledger train kvzap`. With `threshold` the decision is made at storing, as in the paper; without,
the budget decides which of the old rows have the best scores. Where the budget binds, rows that are too young take at most
half of it, since a delay longer than the budget would leave a plain window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods import scorerfile
from kvledger.methods.base import Fresh, Method, Shape, View
from kvledger.recipe import Row, register


def spared(view: View, delay: int) -> View:
    """`view` in which the last `delay` tokens stay; where the budget binds, no more than half of it."""
    young = min(delay, view.budget // 2) if view.budget < view.seen else delay
    return replace(view, recent=view.recent | (view.positions >= view.seen - young))


@register(Row("dms", "compression", "head", "keys", "arXiv 2506.05345", "judged when stored, dropped when old"))
@dataclass(frozen=True, kw_only=True)
class DMS(Method):
    """path: a scorer of `kvledger train kvzap`, or "" for minus the norm of the key. delay: how old a row must be before it
    goes. threshold: rows with scores below it go, however many those are, and `keep` is but an upper bound (1: none); it is
    negative, as all scores are, and 0 means no threshold."""

    path: str = ""
    delay: int = 256
    threshold: float = 0.0

    tally: ClassVar[str] = "rate"
    among: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay < 0:
            raise ValueError(f"delay={self.delay} is negative: it is an age in tokens")
        if not self.threshold <= 0:
            raise ValueError(
                f"threshold={self.threshold} must be negative: scores are logarithms, or minus a norm (0: none)"
            )
        scorerfile.check_path(self.path)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("hidden",) if self.path else ()

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.threshold == 0

    @property
    def drops(self) -> bool:
        return super().drops or self.threshold < 0

    @property
    def fingerprint(self) -> str:
        return scorerfile.digest(self.path) if self.path else ""

    def fit(self, shape: Shape) -> None:
        if self.path:
            cpu = torch.device("cpu")
            scorerfile.fitting(self.path, "kvzap", shape.layers, shape.kv_heads, shape.width, cpu)

    def rate(self, fresh: Fresh) -> Tensor:
        if not self.path:
            return -fresh.keys.float().norm(dim=-1)
        if fresh.hidden is None:
            raise ValueError(f"the layers of this model do not show their input, which {type(self).row.name} reads")
        return predicted(self.path, "kvzap", fresh, fresh.hidden)

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally

    def guarded(self, view: View) -> Tensor:
        """Scores of rows that are old enough; of those below the threshold -inf."""
        scores = super().guarded(spared(view, self.delay))
        return scores.masked_fill(scores < self.threshold, -torch.inf) if self.threshold else scores

    def select(self, view: View) -> Tensor:
        scores = self.guarded(view)
        mask = self.allocate(scores, view) & view.stored
        return mask & (scores > -torch.inf) if self.threshold else mask


def predicted(path: str, kind: str, fresh: Fresh, inputs: Tensor) -> Tensor:
    """Scores [H, T] by the scorer `path` of tokens whose inputs are `inputs` [T, I], of the KV heads that `fresh` is about."""
    heads = scorerfile.fitting(path, kind, fresh.layers, fresh.kv_heads, inputs.shape[-1], inputs.device)(
        fresh.layer, inputs
    )
    return heads[list(fresh.heads)]
