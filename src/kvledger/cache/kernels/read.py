"""Attention over an arena, or over any ragged rows, on a GPU: launches the kernels of `attention.py`."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.kernels import attention
from kvledger.cache.kernels.codes import Codes
from kvledger.cache.kernels.plan import Plan, Windows, plan_for

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
MERGED = 32  # tiles that a program of the merge joins at a time


def read(
    q: Tensor, arena: Arena, first: int, scale: float, softcap: float | None = None, windows: Windows | None = None
) -> tuple[Tensor, Tensor]:
    """`q` [b, Hq, T, Dk] of the sequences `first`, `first` + 1, … over their rows, the last T of which are the queries' own.
    The arena has one region, in a form that `kernels.reads`.
    Output [b, Hq, T, Dv] and log-sum-exp [b, Hq, T] float32. Contract: `kvledger.cache.attend`."""
    b, Hq, T, _ = q.shape
    block = _block_m(T * Hq // arena.heads, q)
    plan, gained = plan_for(arena, first, b, windows, triton.cdiv(T * Hq // arena.heads, block))
    k, v, *_ = arena.regions[0]
    assert isinstance(k, Tensor | Codes)
    assert isinstance(v, Tensor | Codes)
    return over_rows(q, k, v, plan, gained, scale, softcap, windowed=windows is not None)


def over_rows(
    q: Tensor,
    k: Tensor | Codes,
    v: Tensor | Codes,
    plan: Plan,
    gained: int,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    causal: bool = True,
    windowed: bool = False,
) -> tuple[Tensor, Tensor]:
    """`q` [b, Hq, T, Dk] over the segments of `plan` in `k` [rows, Dk] and `v` [rows, Dv], plain or coded; output and
    log-sum-exp as in `read`, -inf where a segment is empty, so that regions of several formats merge.

    `bias` [rows] float32 is added to a row's logits. `causal`: the last T rows belong to the queries; otherwise all rows are
    older than all queries. `gained`: rows that segments have beyond what `plan` was made for.
    """
    q = q if q.stride(-1) == 1 else q.contiguous()
    b, Hq, T, DK = q.shape
    S, DV = plan.segments.shape[1], v.dim if isinstance(v, Codes) else v.shape[-1]
    M, P = T * b * Hq // S, plan.tiles.shape[0]
    out, lse = q.new_empty(b, Hq, T, DV), q.new_empty(b, Hq, T, dtype=torch.float32)
    parts = (out, lse) if P == S else tuple(q.new_empty(P, M, n, dtype=torch.float32) for n in (DV, 1))
    block, block_k, block_v = _block_m(M, q), *(max(16, triton.next_power_of_2(D)) for D in (DK, DV))
    attention.attend[(triton.cdiv(M, block), P)](
        *(q, *q.stride()[:3], *_buffers(k), *_buffers(v), plan.segments if bias is None else bias),
        *(plan.segments, plan.tiles, plan.grown, gained, *parts, S, S // b, T, plan.tile, scale, softcap or 1.0),
        **dict(G=M // T, BLOCK_M=block, DK=DK, BLOCK_DK=block_k, DV=DV, BLOCK_DV=block_v, SPLIT=P > S),
        **dict(BIAS=bias is not None, CAP=softcap is not None, WINDOWED=windowed, CAUSAL=causal),
        **_shape(block, max(block_k, block_v), q),
        **_format("K", k, block_k),
        **_format("V", v, block_v),
        TYPE=tl.float32 if interpreted() else TYPES[q.dtype],
    )
    if P > S:
        attention.merge[(M, S)](*parts, plan.first, out, lse, T, M // T, DV, block_v, MERGED)
    return out, lse


def _block_m(queries: int, q: Tensor) -> int:
    """Queries a program holds: what a matrix instruction takes at least, and what registers take at most."""
    most = 32 if q.dtype == torch.float32 else 128 if q.shape[-1] <= 128 else 64
    return min(most, max(16, triton.next_power_of_2(queries)))


def _shape(block: int, wide: int, x: Tensor) -> dict[str, int]:
    """Rows a program takes at a time, its warps, and the blocks of rows under way: what registers and shared memory hold."""
    exact = x.dtype == torch.float32
    rows = (128 if wide <= 64 and block <= 64 else 64) // (2 if wide > 128 or exact else 1)
    stages = 3
    while stages > 1 and (block + 2 * stages * rows) * wide * x.element_size() > shared_memory(x.device):
        stages -= 1
    warps = 8 if block >= 128 or exact or (block >= 64 and wide > 128) else 4
    return {"BLOCK_N": rows, "num_warps": warps, "num_stages": stages}


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of it that one program may have."""
    if device.type != "cuda":
        return 227 * 1024  # a Hopper's
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def _buffers(x: Tensor | Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Data, scale, zero; an unused pointer is any."""
    if isinstance(x, Codes):
        return x.data, x.scale, x.scale if x.zero is None else x.zero
    return x, x, x


def _format(name: str, x: Tensor | Codes, block: int) -> dict[str, int]:
    if not isinstance(x, Codes):
        return {f"{name}_KIND": 0, f"{name}_ROWS": 1, f"{name}_DIMS": 1}
    kind = 1 + 2 * (x.zero is not None) + 4 * (x.bits == 4)
    return {f"{name}_KIND": kind, f"{name}_ROWS": x.row_group, f"{name}_DIMS": min(x.dim_group, block)}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels; it takes bfloat16 for integers in a product, so float32 stands in."""
    return bool(triton.knobs.runtime.interpret)
