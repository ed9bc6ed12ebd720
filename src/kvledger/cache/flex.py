"""Chosen rows on CUDA: PyTorch's FlexAttention, which skips the blocks that a mask leaves empty."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

TILE = 128  # rows and queries of a block that is computed or skipped as a whole


def usable(x: Tensor) -> bool:
    """FlexAttention is compiled for CUDA; double precision stays with the plain path."""
    return x.device.type == "cuda" and x.dtype != torch.float64


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output [G, T, Dv] and log-sum-exp [G, T] of `q` [G, T, Dk] over `k`, `v` [N, D], where `allowed` [G, T, N] bool."""
    from torch.nn.attention.flex_attention import AuxRequest  # late: importing it costs a second

    def sees(b: Tensor, h: Tensor, t: Tensor, n: Tensor) -> Tensor:
        return allowed[h, t, n]

    def capped(score: Tensor, b: Tensor, h: Tensor, t: Tensor, n: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    mask = tiles(allowed, sees)
    out, more = _function(q.device.type)(
        q[None], k[None, None], v[None, None], score_mod=None if softcap is None else capped, block_mask=mask,
        scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    return out[0], more.lse[0]


def tiles(allowed: Tensor, sees: Any) -> Any:
    """The BlockMask of `allowed` [G, T, N]: tiles that hold anything, in order, and which of them are not full."""
    from torch.nn.attention.flex_attention import BlockMask

    G, T, N = allowed.shape
    padded = torch.nn.functional.pad(allowed, (0, -N % TILE, 0, -T % TILE))
    counts = padded.view(G, -(-T // TILE), TILE, -(-N // TILE), TILE).sum((2, 4))
    some = ((counts > 0) & (counts < TILE * TILE)).to(torch.int32)
    full = (counts == TILE * TILE).to(torch.int32)
    numbers, order = (x[None] for x in _listed(some))
    full_numbers, full_order = (x[None] for x in _listed(full))
    return BlockMask.from_kv_blocks(
        numbers, order, full_numbers, full_order, BLOCK_SIZE=TILE, mask_mod=sees, seq_lengths=(T, N)
    )


def _listed(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Of each line of [G, X, Y], how many are marked, and their numbers first."""
    order = marked.argsort(dim=-1, descending=True, stable=True)
    return marked.sum(-1).to(torch.int32), order.to(torch.int32)


@functools.cache
def _function(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
