# mypy: disable-error-code="no-untyped-def"
"""New rows of all heads of a layer into their segments, in one launch: keys, values, positions and tallies."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.kernels.plan import plan_for

BLOCK = 16  # new tokens a program writes


# fmt: off
@triton.jit(do_not_specialize=["extra", "T"])
def _append(k, k_b, k_h, k_t, v, v_b, v_h, v_t, keys, values, position, tally, segments, seen, grown, extra, S, H, T,
            DK: tl.constexpr, BLOCK_DK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK: tl.constexpr,
            POSITION: tl.constexpr, TALLY: tl.constexpr):
    s = tl.program_id(0)
    b, h = (s // H).to(tl.int64), s % H
    more = tl.load(grown) + extra
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = t < T
    row = tl.load(segments + s).to(tl.int64) + tl.load(segments + S + s) + more + t
    d, e = tl.arange(0, BLOCK_DK), tl.arange(0, BLOCK_DV)
    mask = live[:, None] & (d < DK)[None, :]
    x = tl.load(k + (b * k_b + h * k_h + t.to(tl.int64) * k_t)[:, None] + d[None, :], mask)
    tl.store(keys + row[:, None] * DK + d[None, :], x, mask)
    mask = live[:, None] & (e < DV)[None, :]
    x = tl.load(v + (b * v_b + h * v_h + t.to(tl.int64) * v_t)[:, None] + e[None, :], mask)
    tl.store(values + row[:, None] * DV + e[None, :], x, mask)
    if POSITION:
        tl.store(position + row, (tl.load(seen + b) + more + t).to(position.dtype.element_ty), live)
    if TALLY:
        tl.store(tally + row, tl.zeros([BLOCK], tl.float32), live)
# fmt: on


def append(arena: Arena, k: Tensor, v: Tensor) -> None:
    """Write `k` [B, H, T, Dk] and `v` [B, H, T, Dv] behind the segments; the arena has room for them and still has the lengths
    from before. Positions, where kept, must be wide enough for the new tokens."""
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    B, H, T, DK = k.shape
    DV = v.shape[-1]
    plan, gained = plan_for(arena, 0, B)
    position, tally = arena.position, arena.tally
    _append[(B * H, triton.cdiv(T, BLOCK))](
        *(k, *k.stride()[:3], v, *v.stride()[:3], arena.k, arena.v),
        *(arena.k if position is None else position, arena.k if tally is None else tally),
        *(plan.segments, plan.seen, plan.grown, gained, B * H, H, T),
        DK=DK,
        BLOCK_DK=triton.next_power_of_2(DK),
        DV=DV,
        BLOCK_DV=triton.next_power_of_2(DV),
        BLOCK=BLOCK,
        POSITION=position is not None,
        TALLY=tally is not None,
    )
