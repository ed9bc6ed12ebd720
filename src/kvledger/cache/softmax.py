"""Attention of dense blocks by PyTorch's own kernels, output and log-sum-exp, and how two such results are joined."""

from __future__ import annotations

import torch
from torch import Tensor

LOGITS_AT_ONCE = (
    1 << 26
)  # of the written-out softmax (256 MB in float32): long chunks go through it in blocks of queries


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    softcap: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention output and log-sum-exp of `q` [s, X, T, Dk] over `k`, `v` [s, X, N, D]; zero rows give lse = -inf.

    `mask` [T, N], or [s, 1, 1, N] for all queries alike, bool: which rows a query may see (instead of `causal`); every query
    must see one.
    """
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1]), q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    if softcap is None and q.device.type == "cpu" and k.shape[-1] == v.shape[-1]:
        bias = None if mask is None else q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    block = max(1, LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [
        _explicit(
            q[:, :, t : t + block],
            k,
            v,
            scale,
            softcap,
            t if causal else None,
            mask[t : t + block] if mask is not None and mask.dim() == 2 else mask,
        )
        for t in range(0, q.shape[2], block)
    ]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, first: int | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The softmax written out. `first`: row of `k` that belongs to the first query; later rows are masked (None: no mask)."""
    logits = (q @ k.transpose(-1, -2)).to(torch.float64 if q.dtype == torch.float64 else torch.float32) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if first is not None:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(first + 1)
        logits = logits.masked_fill(later, -torch.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    lse = logits.logsumexp(-1)
    return (logits - lse[..., None]).exp().to(v.dtype) @ v, lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Join two attention results over disjoint rows: softmax weights follow from their log-sum-exp."""
    share = torch.sigmoid(lse - other_lse)[..., None].to(out.dtype)
    return torch.lerp(other, out, share), torch.logaddexp(lse, other_lse)
