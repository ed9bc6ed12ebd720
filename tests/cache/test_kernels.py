"""The CUDA reader's attention against softmax written out: compiled where there is a GPU, else by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ragged import SCALE, arena_of, close, draw, written_out
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.kernels.codes import Codes
from kvledger.cache.kernels.plan import make_plan
from kvledger.cache.kernels.read import MERGED, over_rows, read

# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("lengths", [[[1, 300]], [[129], [64]], [[17, 128, 1], [2, 257, 31]]], ids=str)
def test_decode_is_the_softmax(lengths: list[list[int]], groups: int) -> None:
    arena = arena_of(lengths)
    q = draw(len(lengths), len(lengths[0]) * groups, 1, 16, seed=9)
    close(read(q, arena, 0, SCALE), written_out(q, arena))


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (72, 40)], ids=str)
@pytest.mark.parametrize("T", [1, 3])
def test_head_dims(dims: tuple[int, int], T: int) -> None:
    arena = arena_of([[150, 3]], *dims)
    q = draw(1, 4, T, dims[0], seed=4)
    close(read(q, arena, 0, SCALE), written_out(q, arena))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("T", [1, 5])
def test_half_precision(dtype: torch.dtype, T: int) -> None:
    arena = arena_of([[200, 5]], 64, 64, dtype)
    q = draw(1, 8, T, 64, seed=4, dtype=dtype)
    close(read(q, arena, 0, SCALE), written_out(q, arena), dtype)


@pytest.mark.parametrize("T", [2, 20, 70])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_chunk_sees_older_rows_and_itself_causally(T: int, groups: int) -> None:
    arena = arena_of([[T, T + 130], [T + 1, T + 64]])
    q = draw(2, 2 * groups, T, 16, seed=5)
    close(read(q, arena, 0, SCALE), written_out(q, arena))


@pytest.mark.parametrize("T", [1, 9, 40])
@pytest.mark.parametrize("windows", [[(4, 16), None], [(0, 8), (130, 3)], [(3, 1), (1, 1000)]], ids=str)
def test_windows_hide_the_rows_between(T: int, windows: Any) -> None:
    arena = arena_of([[T + 150, T + 160]])
    q = draw(1, 4, T, 16, seed=6)
    wanted = written_out(q, arena, windows=windows)
    close(read(q, arena, 0, SCALE, windows=windows), wanted)
    assert not torch.allclose(wanted[1], written_out(q, arena)[1])  # the windows mattered


def test_a_window_reads_no_row_outside_it() -> None:
    arena = arena_of([[160, 150]])
    windows = [(4, 32), (0, 16)]
    q = draw(1, 4, 1, 16, seed=6)
    wanted = written_out(q, arena, windows=windows)
    for s, (sinks, window) in enumerate(windows):
        rows = arena.segment(s)
        arena.k[rows.start + sinks : rows.stop - window] = torch.nan
        arena.v[rows.start + sinks : rows.stop - window] = torch.nan
    close(read(q, arena, 0, SCALE, windows=windows), wanted)


@pytest.mark.parametrize("T", [1, 6])
def test_softcap(T: int) -> None:
    arena = arena_of([[140, 9]])
    q = draw(1, 4, T, 16, seed=7) * 4
    close(read(q, arena, 0, SCALE, softcap=2.0), written_out(q, arena, softcap=2.0))


def test_some_sequences_of_a_batch() -> None:
    arena = arena_of([[20, 30], [140, 7], [9, 200]])
    q = draw(2, 4, 3, 16, seed=8)
    close(read(q, arena, 1, SCALE), written_out(q, arena, first=1))


def test_queries_may_lie_anywhere() -> None:
    """What a model hands over is transposed, and a view."""
    arena = arena_of([[140, 9]])
    q = draw(1, 3, 6, 32, seed=7)[..., :16].transpose(1, 2)
    assert not q.is_contiguous()
    close(read(q, arena, 0, SCALE), written_out(q, arena))


# ---- regions: no rows of the queries' own, formats, bias ----------------------------------------------------------------


def region(arena: Arena, tile: int = 128) -> Any:
    n = len(arena.start)
    return make_plan(arena.start, arena.length, arena.capacity, [None] * n, tile, arena.k.device)


def test_more_tiles_than_are_merged_at_a_time() -> None:
    arena = arena_of([[300, 9]])
    q = draw(1, 4, 1, 16, seed=3)
    arena.k[298:300] = q[0, 0]  # what weighs most comes last
    plan = region(arena, tile=8)
    assert len(plan.tiles) > MERGED
    close(over_rows(q, arena.k, arena.v, plan, 0, SCALE), written_out(q, arena))


@pytest.mark.parametrize("T", [1, 4])
def test_older_rows_are_seen_by_all_and_empty_segments_by_none(T: int) -> None:
    arena = arena_of([[0, 200, 1]])
    q = draw(1, 6, T, 16, seed=3)
    out, lse = over_rows(q, arena.k, arena.v, region(arena), 0, SCALE, causal=False)
    close((out, lse), written_out(q, arena, causal=False))
    assert not out[:, :2].any()
    assert bool((lse[:, :2] == -torch.inf).all())


def test_a_bias_is_added_to_each_rows_logits() -> None:
    arena = arena_of([[70, 200]])
    bias = draw(arena.k.shape[0], seed=1)
    q = draw(1, 4, 1, 16, seed=3)
    got = over_rows(q, arena.k, arena.v, region(arena), 0, SCALE, bias=bias, causal=False)
    close(got, written_out(q, arena, bias=bias, causal=False))


def coded(x: Tensor, kind: str, rows: int, dims: int) -> Codes:
    """`x` [N, D] in groups of `rows` × `dims`, by the textbook rule: codes from the least to the greatest, or symmetric."""
    N, D = x.shape
    groups = x.nan_to_num(0.0).view(N // rows, rows, D // dims, dims)
    if kind == "int4":
        low, high = groups.amin((1, 3)), groups.amax((1, 3))
        scale = ((high - low) / 15).clamp(min=1e-6)
        code = ((groups - low[:, None, :, None]) / scale[:, None, :, None]).round().to(torch.uint8).view(N, D)
        return Codes(code[:, ::2] | code[:, 1::2] << 4, scale, low, rows, dims, bits=4)
    scale = (groups.abs().amax((1, 3)) / (127 if kind == "int8" else 448)).clamp(min=1e-6)
    code = (groups / scale[:, None, :, None]).view(N, D)
    data = code.round().to(torch.int8) if kind == "int8" else code.to(torch.float8_e4m3fn)
    return Codes(data, scale, None, rows, dims)


@pytest.mark.parametrize("dim", [64, 96])
@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("groups", [(1, 32), (16, 1)], ids=["by row", "by channel"])
def test_rows_in_codes(kind: str, groups: tuple[int, int], dim: int) -> None:
    arena = arena_of([[48, 144]], dim, dim, slack=16)
    k, v = coded(arena.k, kind, *groups), coded(arena.v, kind, 1, 32)
    q = draw(1, 8, 1, dim, seed=3)
    got = over_rows(q, k, v, region(arena), 0, SCALE, causal=False)
    exact = written_out(q, arena, causal=False)
    arena.k, arena.v = k.plain(), v.plain()
    close(got, written_out(q, arena, causal=False))
    assert 1e-4 < (got[0].double() - exact[0]).abs().mean() < 0.2  # the codes were read, and are about right
