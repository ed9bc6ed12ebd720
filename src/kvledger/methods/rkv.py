"""R-KV (Cai et al., 2025, arXiv 2505.24133; code Apache-2.0): while it reasons, a model repeats itself; repetitions go.

Every `every` tokens of an answer each head is cut to `rows` rows: the last `window`, and those with the greatest

    mix · attention of the last queries  -  (1 - mix) · redundancy.

Attention: softmax of the greatest logit in the group, over rows older than the window, mean over the queries, max-pooled.
Redundancy: softmax over rows of their mean cosine with all other keys, where each key's last look-alike (cosine above
`similar`) is spared its vote, so that the latest of a crowd stays (§3.2). It is summed block by block: memory is O(rows).

Deviations: a key without any look-alike spares nobody (the code spares row 0); prompt and answer share the budget, as there,
but rows older than the budget at the first eviction go at once and not when the buffer is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register

COSINES_AT_ONCE = 2**24


@register(
    Row("rkv", "compression", "head", "last queries, keys", "arXiv 2505.24133", "attended, and not said again since")
)
@dataclass(frozen=True, kw_only=True)
class RKV(Method):
    """rows: of each head (0: by `keep`). mix: weight of attention, in [0, 1]. similar: cosine above which two keys are alike.
    window: how many last queries vote, and whose rows stay. kernel: of the max pooling."""

    rows: int = 512
    when: str = "decode"
    every: int = 64
    mix: float = 0.07
    similar: float = 0.5
    window: int = 8  # type: ignore[misc]
    kernel: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix={self.mix} is outside [0, 1]")
        if not -1 <= self.similar <= 1:
            raise ValueError(f"similar={self.similar} is outside [-1, 1]: it is a cosine")
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least one query must vote")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")

    def score(self, view: View) -> Tensor:
        return self.mix * self.attention(view) - (1 - self.mix) * self.redundancy(view)

    def attention(self, view: View) -> Tensor:
        logits = (view.queries.float() @ view.keys.float().mT[:, None]).amax(1) * view.scale
        old = view.stored & ~view.recent
        weights = logits.masked_fill(~old[:, None], -torch.inf).softmax(-1).nan_to_num(0.0).mean(1)
        return torch.nn.functional.max_pool1d(weights, self.kernel, stride=1, padding=self.kernel // 2)

    def redundancy(self, view: View) -> Tensor:
        H, N = view.shape
        unit = torch.nn.functional.normalize(view.keys.float(), dim=-1) * view.stored[..., None]
        total, place = torch.zeros(H, N, device=unit.device), torch.arange(1, N + 1, device=unit.device)
        block = max(1, COSINES_AT_ONCE // (H * N))
        for start in range(0, N, block):
            cosines = unit[:, start : start + block] @ unit.mT
            cosines.diagonal(start, 1, 2).zero_()
            last = ((cosines > self.similar) * place).amax(-1, keepdim=True)  # 0: nobody is alike
            total += cosines.masked_fill(place == last, 0.0).sum(1)
        mean = total / view.stored.sum(-1, keepdim=True).clamp(min=1)
        return mean.masked_fill(~view.stored, -torch.inf).softmax(-1)
