"""The C reader of single tokens against the softmax written out, and what happens where there is no compiler."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache import attend as module
from kvledger.cache import native
from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend, reference, visible

needs_compiler = pytest.mark.skipif(native._library() is None, reason="no C compiler that makes the reader")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(q: Tensor, k: Tensor, v: Tensor, spans: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Segment by segment, in float64, from the list of its rows."""
    out, lse = q.new_zeros(*q.shape[:2], v.shape[-1], dtype=torch.float64), torch.full(q.shape[:2], -torch.inf).double()
    for s in range(len(q)):
        places = [torch.arange(a, a + n) for of, a, n in zip(*[iter(spans)] * 3, strict=True) if of == s]
        rows = torch.cat([torch.zeros(0, dtype=torch.long), *places])
        if len(rows):
            logits = q[s].double() @ k[rows].double().T * scale
            out[s], lse[s] = logits.softmax(-1) @ v[rows].double(), logits.logsumexp(-1)
    return out, lse


@needs_compiler
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, 15, 16, 17, 63, 64, 65, 130, 400]), min_size=1, max_size=9),
    groups=st.sampled_from([1, 2, 3, 4, 7, 8, 16]),
    dims=st.sampled_from([(16, 16), (64, 64), (128, 128), (80, 80), (96, 32), (48, 112), (256, 256)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    threads=st.sampled_from([1, 2, 5]),
    cut=st.booleans(),
    size=st.sampled_from([0.1, 3.0]),
    seed=st.integers(0, 99),
)
def test_it_equals_the_softmax_written_out(lengths, groups, dims, dtype, threads, cut, size, seed) -> None:
    rows = sum(lengths) + 5
    k, v = draw(rows, dims[0], seed=seed).to(dtype), draw(rows, dims[1], seed=seed + 1).to(dtype)
    q = (draw(len(lengths), groups, dims[0], seed=seed + 2) * size).to(dtype)
    spans, at = [], 5  # the first rows belong to nobody
    for s, n in enumerate(lengths):
        spans += [s, at, n // 3, s, at + n // 2, n - n // 2] if cut else [s, at, n]
        at += n
    before, least = torch.get_num_threads(), native.BYTES_A_THREAD
    torch.set_num_threads(threads)
    native.BYTES_A_THREAD = 1
    try:
        out, lse = native.decode(q, k, v, spans, 0.3)
    finally:
        torch.set_num_threads(before)
        native.BYTES_A_THREAD = least
    want, want_lse = dense(q, k, v, spans, 0.3)
    assert out.dtype == dtype
    near = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(out.double(), want, **near)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_large_and_broken_logits_are_seen() -> None:
    k, v = draw(100, 16, seed=0), draw(100, 16, seed=1)
    k[70] = 1000.0
    q = torch.ones(1, 2, 16)
    out, lse = native.decode(q, k, v, [0, 0, 100], 1.0)
    torch.testing.assert_close(out[0], v[70].expand(2, -1))
    assert lse[0, 0] == 16000
    k[3] = math.nan
    assert native.decode(q, k, v, [0, 0, 100], 1.0)[0].isnan().all()


def arena_of(kept: list[float], dtype: torch.dtype, old: int = 90, dim: int = 32) -> Arena:
    arena = Arena(2, len(kept))
    arena.append(*(draw(2, len(kept), old, dim, seed=i).to(dtype) for i in (0, 1)))
    dice = torch.rand(2, len(kept), old, generator=torch.Generator().manual_seed(2))
    arena.keep([dice[b] < torch.tensor(kept)[:, None] for b in range(2)])
    return arena


@needs_compiler
@pytest.mark.parametrize("groups", [1, 4])
def test_the_reader_takes_it_for_single_tokens(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of([0.0, 0.3, 1.0], torch.float32)
    q, k, v = draw(2, 3 * groups, 1, 32, seed=5), draw(2, 3, 1, 32, seed=6), draw(2, 3, 1, 32, seed=7)
    arena.append(k, v)
    monkeypatch.setattr(module, "sdpa", None)  # nobody else may be asked
    out, lse = attend(q, k, v, arena, 0.2)
    torch.testing.assert_close(out, reference(q, arena, 0.2), rtol=1e-5, atol=1e-5)
    assert lse.shape == (2, 3 * groups, 1)


@needs_compiler
@pytest.mark.parametrize("gathered", [0, 5])
def test_heads_with_a_window_see_their_sinks_and_their_window(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, windows = Arena(1, 3), [None, (4, 16), (0, 200)]
    arena.append(draw(1, 3, 60, 16, seed=0), draw(1, 3, 60, 16, seed=1))
    arena.slide(1, 4, 16 + gathered)
    q, k, v = draw(1, 6, 1, 16, seed=2), draw(1, 3, 1, 16, seed=3), draw(1, 3, 1, 16, seed=4)
    arena.append(k, v)
    ours = attend(q, k, v, arena, 0.2, windows=windows)
    monkeypatch.setattr(native, "usable", lambda *x: False)
    for mine, theirs in zip(ours, attend(q, k, v, arena, 0.2, windows=windows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert sum(visible(arena, windows)[2::3]) == 61 + 20 + 61


def test_visible_rows_are_one_span_unless_some_wait_to_be_dropped() -> None:
    arena = Arena(1, 2)
    arena.append(*[draw(1, 2, 10, 16, seed=0)] * 2)
    assert visible(arena, None) == [0, 0, 10, 1, 10, 10]
    assert visible(arena, [(2, 8), (2, 5)]) == [0, 0, 10, 1, 10, 2, 1, 15, 5]


def test_what_it_does_not_serve() -> None:
    x = torch.zeros(4, 16)
    assert not native.usable(x.double(), x.double(), x.double())
    assert not native.usable(x[:, :8], x[:, :8], x[:, :8])
    assert not native.usable(x.clone().requires_grad_(), x, x)
    assert not native.usable(x.to("meta"), x.to("meta"), x.to("meta"))


@pytest.mark.parametrize("trouble", ["no compiler", "a compiler that fails", "a folder that cannot be made"])
def test_without_a_compiler_pytorch_reads(trouble: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file if trouble == "a folder that cannot be made" else tmp_path))
    monkeypatch.setenv("CC", {"no compiler": "no-such-compiler", "a compiler that fails": "false"}.get(trouble, "cc"))
    native._library.cache_clear()
    try:
        if trouble == "a folder that cannot be made":
            assert not str(native._folder()).startswith(str(tmp_path))
            return
        with pytest.raises((OSError, subprocess.SubprocessError)):
            native.compiled(native.SOURCE)
        arena = arena_of([0.3, 1.0], torch.float32)
        q, k, v = draw(2, 4, 1, 32, seed=5), draw(2, 2, 1, 32, seed=6), draw(2, 2, 1, 32, seed=7)
        arena.append(k, v)
        torch.testing.assert_close(attend(q, k, v, arena, 0.2)[0], reference(q, arena, 0.2), rtol=1e-5, atol=1e-5)
    finally:
        native._library.cache_clear()


@pytest.mark.parametrize("threads", [3, 4])
def test_pytorchs_kernels_read_long_heads_in_pieces(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "usable", lambda *x: False)
    monkeypatch.setattr(module, "SHORTEST", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls, whole = [], module.sdpa
    monkeypatch.setattr(module, "sdpa", lambda q, *rest: calls.append(q.shape[:2]) or whole(q, *rest))
    arena = arena_of([0.2, 0.9], torch.float32)
    q, k, v = draw(2, 4, 1, 32, seed=5), draw(2, 2, 1, 32, seed=6), draw(2, 2, 1, 32, seed=7)
    arena.append(k, v)
    out, _ = attend(q, k, v, arena, 0.2)
    torch.testing.assert_close(out, reference(q, arena, 0.2), rtol=1e-5, atol=1e-5)
    assert (1, threads) in calls  # a long head in pieces
