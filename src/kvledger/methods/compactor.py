"""Compactor (Chari & Van Durme, 2025, arXiv 2507.08143; code in NVIDIA's kvpress, Apache-2.0): unusual keys, and attended ones.

A row's worth is `blend` times the leverage score of its key before rotation, among all candidates' keys after a Gaussian
sketch, plus the attention that it gets without causality from the tokens of its chunk, times the norm of its value, averaged
over three neighbours. Both parts are standardised over the layer. Logits are not scaled, as in the authors' code.

Deviations: attention is summed when rows are stored, in chunks of true positions, so reading in multiples of `chunk` gives
what one shot gives; the last chunk is as short as it is (nothing pads it and votes); the last `recent` tokens vote; the sketch
is left out where it would not shrink the keys; `blend` is a constant, where kvpress takes the dropped fraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.base import Fresh, Method, View
from kvledger.recipe import Row, register


@register(
    Row(
        "compactor",
        "compression",
        "head",
        "all queries",
        "arXiv 2507.08143",
        "unusual keys, attended rows",
    )
)
@dataclass(frozen=True, kw_only=True)
class Compactor(Method):
    """blend: weight of leverage beside attention (0: attention alone). chunk: tokens that look at each other. sketch, seed: of
    the projection of keys, its dimensions and its draw. sinks, recent: the first and last tokens, which stay."""

    blend: float = 0.35
    chunk: int = 256
    sketch: int = 48
    seed: int = 0
    sinks: int = 8  # type: ignore[misc]
    recent: int = 4  # type: ignore[misc]

    tally: ClassVar[str] = "rate"
    needs: ClassVar[tuple[str, ...]] = ("rope",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend < 0:
            raise ValueError(f"blend={self.blend} is negative")
        for name in ("chunk", "sketch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def rate(self, fresh: Fresh) -> Tensor:
        """Column sums of each chunk's attention without causality, sinks left out; mean over the group: [H, T]."""
        sums = torch.zeros(fresh.keys.shape[:2], device=fresh.keys.device)
        first, T = int(fresh.positions[0]), len(fresh.positions)
        edges = [0, *range(self.chunk - first % self.chunk, T, self.chunk), T]
        for start, stop in pairwise(edges):
            part = slice(max(start, self.sinks - first), stop)
            if part.start < stop:
                logits = fresh.queries[:, :, part].float() @ fresh.keys[:, None, part].float().mT
                sums[:, part] = logits.softmax(-1).sum(2).mean(1)
        return sums

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        rows = view.stored & (view.positions >= self.sinks) & ~view.recent
        mass = (view.tally * view.values.float().norm(dim=-1)).masked_fill(~rows, 0.0)
        attention = torch.nn.functional.avg_pool1d(mass, 3, stride=1, padding=1)
        return self.blend * standard(self.leverage(view, rows), rows) + standard(attention, rows)

    def leverage(self, view: View, rows: Tensor) -> Tensor:
        """xᵀ(XᵀX)⁻¹x of each key x before rotation, centred and sketched, where `rows` [H, N] are X: [H, N]."""
        assert view.rope is not None
        keys = view.rope.back(view.keys, view.positions).float() * rows[..., None]
        keys = (keys - keys.sum(1, keepdim=True) / rows.sum(-1).clamp(min=1)[:, None, None]) * rows[..., None]
        H, _, D = keys.shape
        if self.sketch < D:
            draw = torch.Generator().manual_seed(self.seed + view.layer)
            keys = keys @ torch.randn(H, D, self.sketch, generator=draw).to(keys) / sqrt(self.sketch)
        x = keys.double()  # so that the Gram matrix of few or alike keys can be factored
        gram = x.mT @ x + 0.01 * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return (x * torch.cholesky_solve(x.mT, torch.linalg.cholesky(gram)).mT).sum(-1).float()


def standard(scores: Tensor, rows: Tensor) -> Tensor:
    """`scores` [H, N] with mean 0 and deviation 1 over `rows`, over all heads together."""
    real = scores[rows]
    if len(real) < 2:
        return torch.zeros_like(scores)
    return (scores - real.mean()) / real.std().clamp(min=1e-6)
