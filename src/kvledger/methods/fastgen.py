"""FastGen (Ge et al., 2023, arXiv 2310.01801): each head follows the cheapest policy that recovers its attention.

The policies, from cheap to dear (§3.3): sinks; sinks and frequent rows; sinks, frequent and local rows; everything. A head's
policy is the first whose rows hold at least `recover` of the attention that the last queries pay.

Deviations: sinks stand for the paper's special tokens and there is no punctuation policy, since a cache knows no text; the
profile is made with the last queries instead of the prompt's whole attention map, and their own rows stay; frequent and local
rows are fractions of the budget (the paper: 0.3 of all rows each). `keep` is an upper bound: no policy but "everything" takes
more than a head's even share, and heads that want everything divide what the others leave, most attended rows first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.methods.allocate import shares
from kvledger.methods.base import Method, View, softmax_mass
from kvledger.recipe import Row, register


@register(
    Row(
        "fastgen",
        "compression",
        "head",
        "all queries",
        "arXiv 2310.01801",
        "per head the cheapest policy that recovers attention",
    )
)
@dataclass(frozen=True, kw_only=True)
class FastGen(Method):
    """recover: share of the last queries' attention that a policy must hold, in (0, 1]. frequent, local: fractions of a head's
    budget, together at most 1. sinks: the first tokens. window: how many last queries make the profile, and stay."""

    recover: float = 0.95
    frequent: float = 0.5
    local: float = 0.5
    sinks: int = 4  # type: ignore[misc]
    window: int = 32  # type: ignore[misc]
    allocator: str = "heads"

    floor: ClassVar[float] = 1.0  # a head is sure of what its policy wants; only what is left over is shared
    tally: ClassVar[str] = "mass"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.recover <= 1:
            raise ValueError(f"recover={self.recover} is outside (0, 1]: it is a share of attention")
        if min(self.frequent, self.local) < 0 or self.frequent + self.local > 1:
            raise ValueError(
                f"frequent={self.frequent} and local={self.local} are fractions of one budget: at most 1 together"
            )
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least one query must make the profile")

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally

    def guarded(self, view: View) -> Tensor:
        """Attention so far; what the head's policy has no use for stands at -inf."""
        scores = super().guarded(view)
        policies = self.policies(scores, view)
        held = softmax_mass(view).mean(1)
        shared = torch.stack([(held * rows).sum(-1) for rows in policies]) / held.sum(-1).clamp(min=1e-9)
        first = (shared >= self.recover - 1e-6).int().argmax(0)  # "everything" always recovers all
        wanted = torch.stack(policies)[first, torch.arange(len(first), device=first.device)]
        return scores.masked_fill(~wanted, -torch.inf)

    def policies(self, scores: Tensor, view: View) -> list[Tensor]:
        """Rows of each policy, [H, N] bool, from cheap to dear; a policy's rows never exceed the budget, but for the last."""
        special = scores == torch.inf
        room = view.budget - special.sum(-1)
        frequent = special | shares(scores.masked_fill(special, -torch.inf), (self.frequent * room).int())
        rest = view.positions.float().masked_fill(frequent | ~view.stored, -torch.inf)
        local = frequent | shares(rest, (self.local * room).int())
        return [special, frequent & view.stored, local & view.stored, view.stored]

    def select(self, view: View) -> Tensor:
        scores = self.guarded(view)
        return self.allocate(scores, view) & (scores > -torch.inf)
