"""TriAttention (Mao et al., 2026, arXiv 2604.04921; code Apache-2.0): how a head's mean query will look at a key from afar.

Before rotation a head's queries crowd around a centre q̄. Seen from a token Δ positions later a key k gets the logit
Σ_f |q̄_f||k_f| cos(ω_f Δ + φ_f), a trigonometric series over RoPE's bands f, which is averaged over Δ to each of the next 1, 2,
4 … `horizon` tokens; to it comes Σ_f (E|q_f| - |q̄_f|)|k_f|, for the spread around the centre (§3). Scores are standardised in
each query head; a row counts by the greatest in its group. Every `every` tokens of an answer `rows` rows of each head stay.

Deviations: the centres are not calibrated offline on other texts but learned online, from the queries of the prompt and the
answer so far; rows of the prompt compete like others, where the code keeps them all by default (`+ protect` does that); each
head chooses for itself (the code's mode "per layer and head"). Dimensions without rotation, where there are such, count by
their mean. The series is the product of the key as stored and the centre under the mean of the rotations to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvledger.methods.base import Fresh, Method, View
from kvledger.methods.rope import Rope
from kvledger.recipe import Row, register


@register(
    Row("triattention", "compression", "head", "all queries", "arXiv 2604.04921", "rows the mean query sees from afar")
)
@dataclass(frozen=True, kw_only=True)
class TriAttention(Method):
    """rows: of each head (0: by `keep`). horizon: the farthest future token that counts. recent: the last tokens."""

    rows: int = 2048
    when: str = "decode"
    every: int = 128
    horizon: int = 65536
    recent: int = 128  # type: ignore[misc]

    learns: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rope",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon}: at least one token must come")

    def learn(self, fresh: Fresh, state: Any) -> Any:
        """Number of queries, the sum of them before rotation [H, G, D], and of their sizes in each band [H, G, F]."""
        assert fresh.rope is not None
        queries = fresh.rope.back(fresh.queries, fresh.positions).float()
        new = torch.tensor(queries.shape[2]), queries.sum(2), bands(queries, fresh.rope).sum(2)
        return new if state is None else tuple(old + more for old, more in zip(state, new))

    def score(self, view: View) -> Tensor:
        assert view.rope is not None
        assert view.state is not None
        count, total, sizes = view.state
        centre = total / count
        steps = 2 ** torch.arange(self.horizon.bit_length(), device=centre.device)
        ahead = view.rope.mean(centre, view.seen - 1 + steps)
        spread = (sizes / count - bands(centre, view.rope)) * view.rope.scaling
        keys = view.keys.float()
        scores = ahead @ keys.mT + spread @ bands(keys, view.rope).mT
        return standard(scores, view.stored[:, None]).amax(1)


def bands(x: Tensor, rope: Rope) -> Tensor:
    """The size of `x` [..., D] in each plane that RoPE turns, [..., F]."""
    half = len(rope.frequencies)
    return torch.hypot(x[..., :half], x[..., half : 2 * half])


def standard(scores: Tensor, rows: Tensor) -> Tensor:
    """`scores` [..., N] with mean 0 and deviation 1 over `rows` of each head."""
    count = rows.sum(-1, keepdim=True).clamp(min=1)
    centred = scores - (scores * rows).sum(-1, keepdim=True) / count
    return centred / ((centred**2 * rows).sum(-1, keepdim=True) / count).sqrt().clamp(min=1e-6)
