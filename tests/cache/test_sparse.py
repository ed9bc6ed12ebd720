"""Attention to chosen rows against its mask written out, over GQA groups, chunks that begin anywhere, and odd sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache import flex, sparse
from kvledger.cache.masks import Band, Blocks, Choice, Queries, allowed
from kvledger.cache.sparse import read

SOME = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = dict(
    T=st.integers(1, 40), before=st.integers(0, 40), G=st.integers(1, 3), softcap=st.sampled_from([None, None, 2.0])
)


def rows(T: int, before: int, G: int, D: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    maker = torch.Generator().manual_seed(T + 100 * before)
    return tuple(
        torch.randn(*shape, D, generator=maker, dtype=dtype) for shape in ((G, T), (before + T,), (before + T,))
    )


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    logits = q @ k.T * 0.3
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def check(q: Tensor, k: Tensor, v: Tensor, choice: Choice, mask: Tensor, softcap: float | None = None) -> None:
    out, lse, pairs = read(q, k, v, choice, 0.3, softcap)
    want, want_lse = dense(q, k, v, mask, softcap)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)
    assert pairs == int(mask.sum())
    assert torch.equal(allowed(choice, *q.shape[:2], len(k)), mask)


@SOME
@given(
    **SHAPES,
    sinks=st.integers(0, 12),
    window=st.integers(1, 20),
    last=st.integers(0, 9),
    strips=st.sampled_from([(2,), (4, 1), (256,)]),
)
def test_a_band_is_its_mask(T, before, G, softcap, sinks, window, last, strips) -> None:
    q, k, v = rows(T, before, G)
    i, j = torch.arange(before, before + T)[:, None], torch.arange(before + T)
    mask = (j <= i) & ((j < sinks) | (i - j < window) | (i >= before + T - last))  # the paper's, and the last queries
    usual, sparse.STRIPS = sparse.STRIPS, strips
    try:
        check(q, k, v, Band(sinks, window, last), mask.expand(G, -1, -1), softcap)
    finally:
        sparse.STRIPS = usual


def mask_of_blocks(choice: Blocks, G: int, T: int, N: int) -> Tensor:
    """Query by query, from the words of the class."""
    mask = torch.zeros(G, T, N, dtype=torch.bool)
    for g in range(G):
        for t in range(T):
            i = N - T + t
            begin = i // choice.size * choice.size
            mask[g, t, begin : i + 1] = True
            for j in range(begin):
                block = (i // choice.size - (N - T) // choice.size, j // choice.size)
                for name, x in (("seen", choice.seen), ("columns", choice.columns), ("offsets", choice.offsets)):
                    if x is None:
                        continue
                    of = x[g % len(x)]
                    near = of[max(0, begin - j) : begin - j + choice.size]
                    mask[g, t, j] |= of[block] if name == "seen" else of[j] if name == "columns" else near.any()
    return mask


@SOME
@given(
    **SHAPES,
    size=st.integers(1, 12),
    parts=st.integers(1, 7),
    often=st.floats(0, 0.6),
    shared=st.booleans(),
    few=st.booleans(),
)
def test_blocks_columns_and_diagonals_are_their_mask(T, before, G, softcap, size, parts, often, shared, few) -> None:
    q, k, v = rows(T, before, G)
    N, maker = before + T, torch.Generator().manual_seed(size)
    shape = (1 if shared else G, -(-N // size) - before // size, -(-N // size))
    draws = [torch.rand(s, generator=maker) < often for s in (shape, (shape[0], N), (shape[0], N))]
    choice = Blocks(size, *(x if parts >> i & 1 else None for i, x in enumerate(draws)))
    limit, sparse.NUMBERS_AT_ONCE, sparse.MASK_AT_ONCE = sparse.MASK_AT_ONCE, {"cpu": 40 if few else 1 << 20}, 3 * G * N
    try:
        check(q, k, v, choice, mask_of_blocks(choice, G, T, N), softcap)
    finally:
        sparse.MASK_AT_ONCE, sparse.NUMBERS_AT_ONCE = limit, {"cpu": 1 << 21}


@SOME
@given(**SHAPES, size=st.integers(1, 12), often=st.floats(0, 0.6), shared=st.booleans())
def test_blocks_of_each_query_are_their_mask(T, before, G, softcap, size, often, shared) -> None:
    q, k, v = rows(T, before, G)
    N = before + T
    seen = torch.rand(1 if shared else G, T, -(-N // size), generator=torch.Generator().manual_seed(size)) < often
    i, j = torch.arange(before, N)[:, None], torch.arange(N)
    mask = seen[..., j // size] & (j // size < i // size) | (j // size == i // size) & (j <= i)
    check(q, k, v, Queries(size, seen), mask.expand(G, -1, -1), softcap)


@pytest.mark.parametrize("choice", [
    Band(0, 99), Band(99, 1), Band(3, 5, 99),
    Blocks(8, torch.ones(1, 5, 9, dtype=torch.bool)), Blocks(8, columns=torch.ones(1, 70, dtype=torch.bool)),
    Blocks(8, offsets=torch.ones(1, 70, dtype=torch.bool)), Queries(8, torch.ones(1, 37, 9, dtype=torch.bool)),
])  # fmt: skip
def test_with_everything_chosen_it_is_causal_attention(choice: Choice) -> None:
    q, k, v = rows(37, 33, 2)
    causal = torch.ones(37, 70, dtype=torch.bool).tril(33)
    check(q, k, v, choice, causal.expand(2, -1, -1))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_may_be_narrower_than_keys(softcap: float | None) -> None:
    q, k, v = rows(37, 33, 2)
    maker = torch.Generator().manual_seed(1)
    seen = torch.rand(1, 37, 9, generator=maker) < 0.3
    for choice in (Band(3, 5), Blocks(8, columns=torch.rand(2, 70, generator=maker) < 0.1), Queries(8, seen)):
        check(q, k, v[:, :3], choice, allowed(choice, 2, 37, 70), softcap)


def test_what_is_not_chosen_is_not_read() -> None:
    """Values that must not be looked at are not numbers, and nobody notices."""
    q, k, v = rows(64, 0, 2, dtype=torch.float32)
    seen = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen[:, 5, 1] = True
    clean = read(q, k, v, Blocks(8, seen), 0.3)[0][:, 40:48]
    k[16:40], v[16:40] = torch.nan, torch.nan
    assert torch.equal(read(q, k, v, Blocks(8, seen), 0.3)[0][:, 40:48], clean)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_flex_attention_skips_the_same(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The road that CUDA takes, uncompiled: the same numbers, and tiles that are empty are in no list."""
    monkeypatch.setattr(flex, "usable", lambda x: True)
    monkeypatch.setattr(sparse, "MASK_AT_ONCE", 1 << 10)
    q, k, v = rows(300, 130, 2, dtype=torch.float32)
    maker = torch.Generator().manual_seed(3)
    columns, seen = torch.rand(2, 430, generator=maker) < 0.02, torch.rand(1, 300, 7, generator=maker) < 0.3
    for choice in (Blocks(64, columns=columns), Queries(64, seen)):
        out, lse, pairs = read(q, k, v, choice, 0.3, softcap)
        mask = allowed(choice, 2, 300, 430)
        want, want_lse = dense(q, k, v, mask, softcap)
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-5)
        assert pairs == int(mask.sum())


def test_tiles_of_flex_attention_are_those_of_the_mask() -> None:
    mask = torch.zeros(1, 200, 500, dtype=torch.bool)
    mask[:, :128, 128:256], mask[:, 130, 499] = True, True
    made = flex.tiles(mask, lambda b, h, t, n: mask[h, t, n])
    some, full = ((x[0, 0].tolist(), i[0, 0, :, 0].tolist()) for x, i in (
        (made.kv_num_blocks, made.kv_indices), (made.full_kv_num_blocks, made.full_kv_indices)))  # fmt: skip
    assert some == ([0, 1], [0, 3])
    assert full == ([1, 0], [1, 0])
