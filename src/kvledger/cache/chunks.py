"""Attention of several new tokens on a CPU in C (`chunk.c`) and, in the same pass, how much of it each stored row received.

All heads of a layer are read in one call, whatever their lengths and windows.  PyTorch's fused kernel does not hand out its
weights, so that methods which sum them would multiply all queries with all keys a second time (`cache.mass`, the reference).
Where there is no compiler, or no such dtype, PyTorch's kernels serve (`attend.py`).
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kvledger.cache import native
from kvledger.cache.arena import Arena

SOURCE = Path(__file__).with_name("chunk.c")
ALL = 1 << 40  # a window that reaches every row
WORK_A_THREAD = 1 << 20  # multiplications: less is not worth waking a thread for
ARGUMENTS = (
    *(ctypes.c_void_p,) * 4, ctypes.c_int64, ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
    ctypes.c_float, ctypes.c_int, ctypes.c_int, *(ctypes.c_void_p,) * 3,
)  # fmt: skip
# Of a segment: its first row, its rows, how many of them at the front every query may see, how far back a query sees the
# others, and where in the result what its first row receives stands.
Span = tuple[int, int, int, int, int]
Windows = Sequence[tuple[int, int] | None]  # of each head of a layer: (sinks, window), or None where a head sees all


def usable(q: Tensor, arena: Arena, softcap: float | None = None) -> bool:
    """Whether `read` serves queries `q` over the rows of `arena`: numbers in one buffer, in a dtype and of a width that the C
    readers know."""
    regions = arena.regions
    rows = regions[0].k, regions[0].v
    plain = len(regions) == 1 and all(isinstance(x, Tensor) for x in rows) and softcap is None
    return plain and native.usable(q, *rows) and _library() is not None


def read(
    q: Tensor, arena: Arena, scale: float, windows: Windows | None = None, first: int = 0, weigh: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of `q` [b, Hq, T, Dk], which is `usable`, of the sequences `first`, `first` + 1, …, whose new rows are the last
    T of their segments: output [b, Hq, T, Dv] and log-sum-exp [b, Hq, T] float32.

    If `weigh`, also how much each row of the buffers has received: its weights, summed over the queries and averaged over
    the group, [rows] float32.
    """
    b, Hq, T, Dk = q.shape
    k, v = arena.regions[0].k, arena.regions[0].v
    assert isinstance(k, Tensor)
    assert isinstance(v, Tensor)
    out, lse = torch.empty(b, Hq, T, v.shape[-1]), torch.empty(b, Hq, T)
    mass = torch.zeros(len(k)) if weigh else None
    _call(q.reshape(-1, Hq // arena.heads, T, Dk), k, v, _spans(arena, windows, first, b), scale, out, lse, mass)
    return out.to(q.dtype), lse, mass


def window_mass(q: Tensor, k: Tensor, counts: Sequence[int], scale: float) -> Tensor:
    """What the last `counts[h]` rows of `k` [H, N, D] receive of `q` [H, G, W, D], the queries of the last W of them: weights
    summed over the queries, [H, G, N] float32; 0 for the other rows. For what `weighable` allows."""
    H, G, W, D = q.shape
    N, k = k.shape[1], k.contiguous()
    mass, lse = torch.zeros(H, G, N), torch.empty(H, G, W)
    spans = [
        (h * N + N - counts[h], counts[h], 0, ALL, (h * G + g) * N + N - counts[h]) for h in range(H) for g in range(G)
    ]
    _call(q.reshape(H * G, 1, W, D), k, k[..., :0], spans, scale, torch.empty(0), lse, mass)
    return mass


def weighable(q: Tensor, k: Tensor) -> bool:
    """Whether `window_mass` serves queries `q` and keys `k`."""
    return native.usable(q, k, k) and _library() is not None


def _call(
    q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float, out: Tensor, lse: Tensor, mass: Tensor | None
) -> None:
    """The C reader: `q` [S, G, T, Dk] of the segments that `spans` describe."""
    library = _library()
    assert library is not None
    q, given = q.contiguous(), torch.tensor(spans)
    S, G, T, Dk = q.shape
    threads = max(1, min(torch.get_num_threads(), G * T * int(given[:, 1].sum()) * Dk // WORK_A_THREAD))
    failed = library.kvledger_chunk(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), given.data_ptr(), S, G, T, Dk, v.shape[-1], scale, native.KINDS[k.dtype],
        threads, out.data_ptr(), lse.data_ptr(), None if mass is None else mass.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for the weights of {T} tokens")


def _spans(arena: Arena, windows: Windows | None, first: int, sequences: int) -> list[Span]:
    spans: list[Span] = []
    for s in range(first * arena.heads, (first + sequences) * arena.heads):
        window = windows[s % arena.heads] if windows else None
        sinks = 0 if window is None else min(window[0], arena.seen[s // arena.heads])
        start = arena.start[s]
        spans.append((start, arena.length[s], sinks, ALL if window is None else window[1], start))
    return spans


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(native.compiled(SOURCE)))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("no C reader (%s): reading on the CPU takes PyTorch's kernels", error)
        return None
    library.kvledger_chunk.argtypes = ARGUMENTS
    library.kvledger_chunk.restype = ctypes.c_int
    return library
