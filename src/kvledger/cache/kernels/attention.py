# mypy: disable-error-code="no-untyped-def"
"""Split-KV attention over ragged segments: the Triton kernels. `read.py` launches them.

A program meets one tile of one segment and a block of queries: the G queries of a KV head and the T new tokens, folded, so
that each row is read once for all of them (FlashDecoding's split, Dao et al. 2023, over a flat work list).  Query t of a
segment of n rows sees row j if j <= n - T + t and, in a head with a window, if also j < sinks or n - T + t - j < window: rows
behind the sinks are consecutive tokens, so rows can be counted instead of positions.  Logits are kept in base 2.
KIND is what a buffer holds (`codes.py`): PLAIN numbers, or codes with a scale (1), a zero (2), two to a byte (4).
"""

from __future__ import annotations

import triton
import triton.language as tl

# fmt: off
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FOREVER = tl.constexpr(1 << 30)  # the window of a head without one (`plan.py`)


@triton.jit
def _spread(numbers, begin, end, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
            ROWS: tl.constexpr, DIMS: tl.constexpr):
    """Scales or zeros of rows begin, begin + 1, …, loaded once per group and repeated over it: [BLOCK_N, BLOCK]."""
    r, c = begin // ROWS + tl.arange(0, BLOCK_N // ROWS), tl.arange(0, BLOCK // DIMS)
    columns: tl.constexpr = (D + DIMS - 1) // DIMS
    x = tl.load(numbers + r[:, None] * columns + c[None, :], (r * ROWS < end)[:, None] & (c < columns)[None, :], 0.0)
    x = tl.broadcast_to(x[:, None, :, None].to(tl.float32), (BLOCK_N // ROWS, ROWS, BLOCK // DIMS, DIMS))
    return tl.reshape(x, (BLOCK_N, BLOCK))


@triton.jit
def _numbers(data, scale, zero, begin, end, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
             KIND: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, TYPE: tl.constexpr, ALL: tl.constexpr):
    """Rows [BLOCK_N, BLOCK] of a buffer from `begin` on, decoded, zeros from `end` on. ALL: none is behind it."""
    rows, d = begin + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK)
    inside = (rows < end)[:, None]
    if KIND // 4 == 1:
        half = tl.arange(0, BLOCK // 2)
        code = tl.load(data + rows[:, None] * (D // 2) + half[None, :], inside & (half < D // 2)[None, :], 0)
        x = tl.interleave(code & 15, code >> 4)
    elif ALL and D == BLOCK:
        x = tl.load(data + rows[:, None] * D + d[None, :])
    else:
        x = tl.load(data + rows[:, None] * D + d[None, :], inside & (d < D)[None, :], 0.0)
    if KIND % 2 == 1:
        x = x.to(tl.float32) * _spread(scale, begin, end, D, BLOCK_N, BLOCK, ROWS, DIMS)
        if KIND // 2 % 2 == 1:
            x += _spread(zero, begin, end, D, BLOCK_N, BLOCK, ROWS, DIMS)
        x = tl.where(inside, x, 0.0)
    return x.to(TYPE)


@triton.jit
def _rows(state, j0, j1, stop, q, k, k_scale, k_zero, v, v_scale, v_zero, bias, start, own, sinks, window, scale, cap,
          BLOCK_N: tl.constexpr, DK: tl.constexpr, BLOCK_DK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
          K_KIND: tl.constexpr, K_ROWS: tl.constexpr, K_DIMS: tl.constexpr, V_KIND: tl.constexpr, V_ROWS: tl.constexpr,
          V_DIMS: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, WINDOWED: tl.constexpr, TYPE: tl.constexpr,
          ALL: tl.constexpr):
    """The online softmax over blocks of rows that begin in [j0, j1), none from `stop` on. `own` [M]: row of each query
    itself. ALL: every query sees every row."""
    acc, top, total = state
    for j in range(j0, j1, BLOCK_N):
        rows = j + tl.arange(0, BLOCK_N)
        at, end = start + j, start + stop
        keys = _numbers(k, k_scale, k_zero, at, end, DK, BLOCK_N, BLOCK_DK, K_KIND, K_ROWS, K_DIMS, TYPE, ALL)
        logits = tl.dot(q, tl.trans(keys), input_precision="ieee")
        if CAP:
            logits = cap * (2.0 * tl.sigmoid(logits * (scale * 2.0 / cap)) - 1.0) * LOG2E
        else:
            logits = logits * (scale * LOG2E)
        if BIAS:
            logits += (tl.load(bias + start + rows, rows < stop, 0.0) * LOG2E)[None, :]
        if not ALL:
            seen = (rows < stop)[None, :] & (rows[None, :] <= own[:, None])
            if WINDOWED:
                seen = seen & ((rows < sinks)[None, :] | (own[:, None] - rows[None, :] < window))
            logits = tl.where(seen, logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen yet: no inf - inf
        weights, fade = tl.exp2(logits - base[:, None]), tl.exp2(top - base)
        values = _numbers(v, v_scale, v_zero, at, end, DV, BLOCK_N, BLOCK_DV, V_KIND, V_ROWS, V_DIMS, TYPE, ALL)
        acc = tl.dot(weights.to(TYPE), values, acc * fade[:, None], input_precision="ieee")
        top, total = higher, total * fade + tl.sum(weights, 1)
    return acc, top, total


@triton.jit
def _write(state, out, lse, row, live, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    """The state of an online softmax as output and log-sum-exp, in rows `row` [M] where `live`."""
    acc, top, total = state
    total = tl.where(total > 0.0, total, 1.0)  # nothing seen: zeros and -inf
    e = tl.arange(0, BLOCK_DV)
    tl.store(out + row[:, None] * DV + e[None, :], (acc / total[:, None]).to(out.dtype.element_ty),
             live[:, None] & (e < DV)[None, :])
    tl.store(lse + row, (top + tl.log2(total)) * LN2, live)


@triton.jit(do_not_specialize=["extra"])
def attend(q, q_b, q_h, q_t, k, k_scale, k_zero, v, v_scale, v_zero, bias, segments, tiles, grown, extra, out, lse,
           S, H, T, tile, scale, cap, G: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DK: tl.constexpr,
           BLOCK_DK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, K_KIND: tl.constexpr, K_ROWS: tl.constexpr,
           K_DIMS: tl.constexpr, V_KIND: tl.constexpr, V_ROWS: tl.constexpr, V_DIMS: tl.constexpr, BIAS: tl.constexpr,
           CAP: tl.constexpr, WINDOWED: tl.constexpr, CAUSAL: tl.constexpr, SPLIT: tl.constexpr, TYPE: tl.constexpr):
    """Program (i, p): tile p and the i-th last block of its segment's queries (the last ones have most to read, so they go
    first). Writes what it has read: for the merge [P, T·G, DV] float32 (SPLIT), or where it belongs, [S·G, T, DV]."""
    i, p = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    s, lo = tl.load(tiles + 2 * p), tl.load(tiles + 2 * p + 1)
    start = tl.load(segments + s).to(tl.int64)
    n = tl.load(segments + S + s) + tl.load(grown) + extra
    m = i * BLOCK_M + tl.arange(0, BLOCK_M)  # token by token, the G queries of a token side by side
    t, g = m // G, m % G
    live = m < T * G
    own, first, hi = n - 1 + 0 * t, n - 1, tl.minimum(lo + tile, n)
    if CAUSAL:
        own, first = n - T + t, n - T + i * BLOCK_M // G
        hi = tl.minimum(hi, n - T + 1 + tl.minimum((i * BLOCK_M + BLOCK_M - 1) // G, T - 1))
    d = tl.arange(0, BLOCK_DK)
    place = (s // H).to(tl.int64) * q_b + ((s % H) * G + g) * q_h + t.to(tl.int64) * q_t
    query = tl.load(q + place[:, None] + d[None, :], live[:, None] & (d < DK)[None, :], 0.0).to(TYPE)
    state = (tl.zeros([BLOCK_M, BLOCK_DV], tl.float32), tl.full([BLOCK_M], -float("inf"), tl.float32),
             tl.zeros([BLOCK_M], tl.float32))
    sinks, window, body = 0, 0, lo
    if WINDOWED:
        sinks, window = tl.load(segments + 2 * S + s), tl.load(segments + 3 * S + s)
        stop = tl.minimum(hi, sinks)
        state = _rows(state, lo, stop, stop, query, k, k_scale, k_zero, v, v_scale, v_zero, bias, start, own, sinks, window,
                      scale, cap, BLOCK_N, DK, BLOCK_DK, DV, BLOCK_DV, K_KIND, K_ROWS, K_DIMS, V_KIND, V_ROWS, V_DIMS,
                      BIAS, CAP, WINDOWED, TYPE, False)
        body = tl.maximum(tl.maximum(lo, sinks), first - window + 1)
    open_ = body + tl.maximum(tl.minimum(hi, first + 1) - body, 0) // BLOCK_N * BLOCK_N  # seen by every query: no mask
    if WINDOWED:
        open_ = tl.where(window < FOREVER, body, open_)
    state = _rows(state, body, open_, hi, query, k, k_scale, k_zero, v, v_scale, v_zero, bias, start, own, sinks, window,
                  scale, cap, BLOCK_N, DK, BLOCK_DK, DV, BLOCK_DV, K_KIND, K_ROWS, K_DIMS, V_KIND, V_ROWS, V_DIMS,
                  BIAS, CAP, WINDOWED, TYPE, True)
    state = _rows(state, open_, hi, hi, query, k, k_scale, k_zero, v, v_scale, v_zero, bias, start, own, sinks, window,
                  scale, cap, BLOCK_N, DK, BLOCK_DK, DV, BLOCK_DV, K_KIND, K_ROWS, K_DIMS, V_KIND, V_ROWS, V_DIMS,
                  BIAS, CAP, WINDOWED, TYPE, False)
    _write(state, out, lse, p.to(tl.int64) * (T * G) + m if SPLIT else (s * G + g).to(tl.int64) * T + t, live, DV, BLOCK_DV)


@triton.jit
def merge(parts, part_lse, first, out, lse, T, G: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK: tl.constexpr):
    """Program (m, s): joins what the tiles of segment s say of its query m, by their log-sum-exp."""
    m, s = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(first + s), tl.load(first + s + 1)
    e = tl.arange(0, BLOCK_DV)
    acc = tl.zeros([BLOCK_DV], tl.float32)
    top, total = -float("inf"), 0.0
    for i in range(begin, end, BLOCK):
        p = i + tl.arange(0, BLOCK)
        row = p.to(tl.int64) * (T * G) + m
        part = tl.load(part_lse + row, p < end, -float("inf")) * LOG2E
        higher = tl.maximum(top, tl.max(part, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights, fade = tl.exp2(part - base), tl.exp2(top - base)
        some = tl.load(parts + row[:, None] * DV + e[None, :], (p < end)[:, None] & (e < DV)[None, :], 0.0)
        acc = acc * fade + tl.sum(some * weights[:, None], 0)
        top, total = higher, total * fade + tl.sum(weights, 0)
    total = tl.where(total > 0.0, total, 1.0)
    row = (s * G + m % G).to(tl.int64) * T + m // G
    tl.store(out + row * DV + e, (acc / total).to(out.dtype.element_ty), e < DV)
    tl.store(lse + row, (top + tl.log2(total)) * LN2)
