"""Expected Attention (Devoto et al., 2025, arXiv 2510.00636): what queries yet to come will look at, in expectation.

Queries are taken for Gaussian before their rotation. Their mean and covariance, gathered over all tokens so far but the sinks,
are turned by the mean rotation of the next `future` positions; a row's expected weight is exp(μ·k + kᵀΣk/2), normalised over
the rows, mean over the queries of a KV head, times the norm of its value (§3, and NVIDIA's kvpress, Apache-2.0).

Deviations: the statistics are of the queries themselves (so query norms are no obstacle) and go on being gathered from chunk
to chunk and while decoding; the future is counted from the tokens seen; ‖v‖ stands for the paper's ‖W_o v‖, as in kvpress.
The paper lets heads compete: `allocator="heads", epsilon=0.02`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvledger.methods.base import Fresh, Method, View
from kvledger.recipe import Row, register


@register(
    Row(
        "expected_attention",
        "compression",
        "head",
        "all queries",
        "arXiv 2510.00636",
        "rows that future queries will look at",
    )
)
@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Method):
    """future: how many positions to come are averaged. covariance, vnorm: whether the queries' covariance and the values'
    norms count. epsilon: added to the weights before the norms multiply. sinks: the first tokens, which stay, uncounted."""

    future: int = 512
    covariance: bool = True
    vnorm: bool = True
    epsilon: float = 0.0
    sinks: int = 4  # type: ignore[misc]

    learns: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rope",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.future < 1:
            raise ValueError(f"future={self.future}: at least one position must come")
        if self.epsilon < 0:
            raise ValueError(f"epsilon={self.epsilon} is negative")

    def learn(self, fresh: Fresh, state: Any) -> Any:
        """Count, mean [H, G, D] and scatter [H, G, D, D] of the queries before rotation, merged with those so far."""
        assert fresh.rope is not None
        real = fresh.positions >= self.sinks
        queries = fresh.rope.back(fresh.queries[:, :, real], fresh.positions[real]).float()
        n = queries.shape[2]
        if not n:
            return state
        mean = queries.mean(2)
        centred = queries - mean[:, :, None]
        scatter = centred.mT @ centred if self.covariance else mean.new_zeros(0)
        if state is None:
            return torch.tensor(n), mean, scatter
        count, old, spread = state
        gap, share = mean - old, n / (count + n)
        if self.covariance:
            scatter = scatter + spread + gap[..., :, None] * gap[..., None, :] * (count * share)
        return count + n, old + gap * share, scatter

    def score(self, view: View) -> Tensor:
        norms = view.values.float().norm(dim=-1) if self.vnorm else 1.0
        if view.state is None:  # nothing but sinks so far
            return torch.ones(view.shape, device=view.keys.device) * norms
        assert view.rope is not None
        count, mean, scatter = view.state
        ahead = torch.arange(view.seen, view.seen + self.future, device=mean.device)
        mean, keys = view.rope.mean(mean, ahead), view.keys.float()
        candidates = view.stored & (view.positions >= self.sinks)
        weights = torch.zeros(view.shape, device=keys.device)
        for g in range(mean.shape[1]):  # one query head of each group at a time: no more than the keys is held
            logits = (keys @ mean[:, g, :, None]).squeeze(-1) * view.scale
            if self.covariance:
                spread = view.rope.mean(view.rope.mean(scatter[:, g] / count, ahead).mT, ahead)
                logits += ((keys @ spread) * keys).sum(-1) * (view.scale**2 / 2)
            weights += logits.masked_fill(~candidates, -torch.inf).softmax(-1).nan_to_num(0.0) / mean.shape[1]
        return (weights + self.epsilon) * norms
