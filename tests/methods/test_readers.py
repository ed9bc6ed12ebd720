"""What each reader chooses against ten dense lines written from its paper, and what it says it has read."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from kvledger.cache import native
from kvledger.cache.arena import Arena
from kvledger.cache.spans import decode_spans
from kvledger.methods.offload import Offload
from kvledger.methods.quest import Quest
from kvledger.methods.reader import Choice, Look, Reader
from kvledger.methods.retrieval_attention import RetrievalAttention
from kvledger.methods.twilight import Twilight
from kvledger.recipe import parse

SCALE = 0.25
DTYPES = [torch.float64, torch.float32]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arena_of(rows: int, heads: int, ragged: bool, dtype: torch.dtype, batch: int = 2, dim: int = 16) -> Arena:
    arena = Arena(batch, heads)
    arena.append(*(draw(batch, heads, rows, dim, seed=i).to(dtype) for i in (0, 1)))
    if ragged:
        dice = draw(batch, heads, rows, seed=2)
        arena.keep([[dice[b, h] > -0.3 * h for h in range(heads)] for b in range(batch)])
    return arena


def look_at(reader: Reader, arena: Arena, groups: int, seed: int = 5) -> Look:
    index, segments = reader.open(), list(range(len(arena.length)))
    if index is not None:
        index.update(arena, segments)
    q = draw(len(segments), groups, arena.k.shape[-1], seed=seed).to(arena.k.dtype) * 2
    return Look(q, segments, arena, SCALE, index)


def rows_of(choice: Choice | None, arena: Arena) -> list[set[int]]:
    """Rows inside each segment; a row is named once, and spans are in order."""
    if choice is None:
        return [set(range(n)) for n in arena.length]
    found: list[list[int]] = [[] for _ in arena.length]
    for s, first, n in choice.spans.tolist():
        assert n > 0
        found[s] += range(first - arena.start[s], first - arena.start[s] + n)
    for rows, n in zip(found, arena.length):
        assert rows == sorted(set(rows))
        assert not rows or 0 <= rows[0] <= rows[-1] < n
    return [set(rows) for rows in found]


def keys_of(look: Look, s: int) -> Tensor:
    return look.arena.k[look.arena.segment(s)]


def quest_rows(look: Look, s: int, pages: int, size: int) -> set[int]:
    """Quest §3.2: U = Σ_d max(q_d·m_d, q_d·M_d) of each page; the newest page and the best of the others."""
    keys = keys_of(look, s)
    worth = []
    for first in range(0, len(keys), size):
        page = keys[first : first + size]
        high, low = page.max(0).values, page.min(0).values
        worth.append(max(float(torch.maximum(q * high, q * low).sum()) for q in look.q[s]))
    newest = len(worth) - 1
    best = sorted(range(newest), key=lambda page: -worth[page])[: pages - 1]
    return {row for page in (*best, newest) for row in range(page * size, min((page + 1) * size, len(keys)))}


def retrieval_rows(look: Look, s: int, k: int, sinks: int, window: int) -> set[int]:
    """RetrievalAttention: sinks, window, and for each query the k other rows of largest product."""
    keys = keys_of(look, s)
    rows = {row for row in range(len(keys)) if row < sinks or row >= len(keys) - window}
    others = [row for row in range(len(keys)) if row not in rows]
    for q in look.q[s]:
        rows |= set(sorted(others, key=lambda row: -float(q @ keys[row]))[:k])
    return rows


def twilight_rows(look: Look, s: int, p: float, pages: int, size: int) -> set[int]:
    """Twilight: of the rows that Quest passes on, the fewest whose softmax over 4-bit keys reaches p, for each query."""
    keys = keys_of(look, s)
    full = len(keys) // size * size
    low, high = keys[:full].amin(-1, keepdim=True), keys[:full].amax(-1, keepdim=True)
    step = (high - low) / 15
    guess = torch.cat([((keys[:full] - low) / step).round() * step + low, keys[full:]])
    passed = sorted(quest_rows(look, s, pages, size) if pages else range(len(keys)))
    rows = set()
    for q in look.q[s]:
        weights, mass = (guess[passed] @ q * SCALE).softmax(-1), 0.0
        for i in weights.argsort(descending=True).tolist():
            if mass < p:
                rows.add(passed[i])
            mass += float(weights[i])
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pages, size, rows", [(1, 4, 43), (3, 4, 44), (5, 8, 97), (2, 1, 9), (9, 16, 200)])
def test_quest_reads_the_pages_of_largest_bound(dtype, ragged, groups, pages, size, rows) -> None:
    arena, reader = arena_of(rows, 3, ragged, dtype), Quest(pages=pages, size=size)
    look = look_at(reader, arena, groups)
    choice = reader.choose(look)
    assert choice is not None
    assert rows_of(choice, arena) == [quest_rows(look, s, pages, size) for s in look.segments]
    assert choice.nbytes == sum(n // size for n in arena.length) * 2 * 16 * dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("k, sinks, window", [(1, 0, 1), (7, 4, 9), (30, 2, 5)])
def test_retrieval_reads_what_an_exact_search_finds(dtype, ragged, groups, k, sinks, window) -> None:
    arena, reader = arena_of(90, 3, ragged, dtype), RetrievalAttention(k=k, sinks=sinks, window=window)
    look = look_at(reader, arena, groups)
    choice = reader.choose(look)
    assert choice is not None
    assert rows_of(choice, arena) == [retrieval_rows(look, s, k, sinks, window) for s in look.segments]
    assert choice.nbytes == sum(n - sinks - window for n in arena.length) * 16 * dtype.itemsize


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("p, pages, size, rows", [(0.5, 0, 4, 43), (0.9, 5, 4, 44), (0.99, 4, 16, 97), (1.0, 3, 8, 50)])
def test_twilight_reads_the_fewest_rows_that_weigh_p(ragged, groups, p, pages, size, rows) -> None:
    arena, reader = arena_of(rows, 3, ragged, torch.float64), Twilight(p=p, pages=pages, size=size)
    look = look_at(reader, arena, groups)
    choice = reader.choose(look)
    assert choice is not None
    assert rows_of(choice, arena) == [twilight_rows(look, s, p, pages, size) for s in look.segments]
    estimated = sum(min(n // size, (pages - 1 if n % size else pages) if pages else n) for n in arena.length)
    bounds = sum(n // size for n in arena.length) * 32 * 8 if pages and max(arena.length) > pages * size else 0
    codes = estimated * size * (8 + 2 * 8)
    assert choice.nbytes == bounds + codes + sum(n % size for n in arena.length) * 16 * 8


@pytest.mark.parametrize(
    "reader, everything",
    [
        (Quest(pages=13, size=8), True),
        (Quest(pages=12, size=8), False),
        (RetrievalAttention(k=85, sinks=4, window=8), True),
        (RetrievalAttention(k=84, sinks=4, window=8), False),
        (Twilight(p=1.0, pages=0), True),
        (Twilight(p=1.0), True),
        (Twilight(p=0.999), False),
        (Offload(), True),
    ],
)
def test_a_budget_of_everything_reads_everything(reader: Reader, everything: bool) -> None:
    look = look_at(reader, arena_of(97, 2, False, torch.float32), 2)
    assert (reader.choose(look) is None) == everything


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize(
    "reader", [Quest(pages=4, size=8), RetrievalAttention(k=5, sinks=2, window=6), Twilight(p=0.7)]
)
def test_attention_over_what_was_chosen_is_the_softmax_over_those_rows(reader: Reader, dtype: torch.dtype) -> None:
    arena = arena_of(120, 2, True, dtype)
    look = look_at(reader, arena, 4)
    choice = reader.choose(look)
    assert choice is not None
    out, lse = decode_spans(look.q.view(2, 8, 1, 16), arena, choice.spans.flatten().tolist(), SCALE)
    for s, rows in enumerate(rows_of(choice, arena)):
        places = torch.tensor(sorted(rows)) + arena.start[s]
        logits = look.q[s].double() @ arena.k[places].double().T * SCALE
        near = dict(rtol=1e-4, atol=1e-4) if dtype != torch.bfloat16 else dict(rtol=2**-6, atol=2**-6)
        want = logits.softmax(-1) @ arena.v[places].double()
        torch.testing.assert_close(out.view(4, 4, 16)[s].double(), want, **near)
        torch.testing.assert_close(lse.view(4, 4)[s].double(), logits.logsumexp(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(native._library() is None, reason="no C compiler that makes the reader")
def test_the_compiled_search_finds_what_the_plain_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of(200, 3, True, torch.float32)
    for reader in (Quest(pages=6), RetrievalAttention(k=20, sinks=2, window=6), Twilight(p=0.8, pages=6)):
        look = look_at(reader, arena, 2)
        ours = rows_of(reader.choose(look), arena)
        with monkeypatch.context() as patch:
            patch.setattr(native, "usable", lambda *x: False)
            assert rows_of(reader.choose(look), arena) == ours


def test_a_page_bound_is_above_every_product_in_the_page() -> None:
    from kvledger.methods.quest import page_scores

    look = look_at(Quest(pages=1, size=8), arena_of(80, 2, False, torch.float64), 3)
    scores = page_scores(look)
    for s in look.segments:
        products = (look.q[s] @ keys_of(look, s).T * SCALE).amax(0).view(-1, 8).amax(-1)
        assert bool((scores[s] >= products).all())
    assert bool(scores[:, -1].isinf().all())


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("quest(pages=0)", "pages=0"),
        ("quest(size=0)", "size=0"),
        ("quest(dense=-1)", "dense=-1"),
        ("retrieval_attention(k=0)", "k=0"),
        ("retrieval_attention(window=0)", "window=0"),
        ("retrieval_attention(sinks=-1)", "sinks=-1"),
        ("retrieval_attention(index='fais')", "did you mean 'faiss'"),
        ("retrieval_attention(probes=0)", "probes=0"),
        ("twilight(p=0.0)", r"p=0.0 is outside \(0, 1\]"),
        ("twilight(p=1.1)", r"p=1.1 is outside \(0, 1\]"),
        ("twilight(size=0)", "size=0"),
        ("twilight(pages=-1)", "pages=-1"),
        ("offload(limit=-1)", "limit=-1"),
        ("quest + twilight", "two readers"),
    ],
)
def test_options_that_make_no_sense_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"kvledger\[retrieval\]"):
        parse("retrieval_attention(index='faiss')")


def test_odd_head_dims_cannot_be_packed() -> None:
    from kvledger.methods.base import Shape

    with pytest.raises(ValueError, match="head dim of 15 is odd"):
        Twilight().fit(Shape(2, 4, 2, 60, 15))


# ---- FAISS -----------------------------------------------------------------------------------------------------------


def faiss_rows(arena: Arena, look: Look, reader: RetrievalAttention) -> list[set[int]]:
    look.index.update(arena, look.segments)
    return rows_of(reader.choose(look), arena)


def test_faiss_that_searches_every_list_is_the_exact_search() -> None:
    pytest.importorskip("faiss")
    arena = arena_of(300, 2, True, torch.float32)
    options: dict[str, Any] = dict(k=9, sinks=3, window=10)
    reader = RetrievalAttention(index="faiss", probes=10**6, **options)
    look = look_at(reader, arena, 3)
    assert faiss_rows(arena, look, reader) == [retrieval_rows(look, s, **options) for s in look.segments]
    assert look.index.nbytes > sum(n - 10 for n in arena.length) * 16 * 4
    few = RetrievalAttention(index="faiss", probes=1, **options)
    fewer = look_at(few, arena, 3)
    wide, narrow = reader.choose(look), few.choose(fewer)
    assert wide is not None
    assert narrow is not None
    assert narrow.nbytes < wide.nbytes


def test_faiss_follows_rows_and_leaves_branches_alone() -> None:
    pytest.importorskip("faiss")
    arena = arena_of(200, 2, False, torch.float32, batch=1)
    reader = RetrievalAttention(index="faiss", probes=10**6, k=9, sinks=3, window=10)
    look = look_at(reader, arena, 2)
    before = faiss_rows(arena, look, reader)
    twin, branch = Look(look.q, look.segments, arena.fork(), SCALE, look.index.fork()), reader
    for i in range(25):  # rows join in lots of `window`
        twin.arena.append(draw(1, 2, 1, 16, seed=i), draw(1, 2, 1, 16, seed=-i))
        twin.index.update(twin.arena, twin.segments)
        known = twin.index.known[0]
        assert 10 <= twin.arena.length[0] - known <= 20
        rows = rows_of(branch.choose(twin), twin.arena)
        assert rows == [retrieval_rows(twin, s, 9, 3, twin.arena.length[s] - known) for s in twin.segments]
    assert faiss_rows(arena, look, reader) == before
    assert look.index.known == [190, 190]
    twin.arena.rollback([195])
    twin.index.cut(twin.arena)
    assert faiss_rows(twin.arena, twin, reader) == [retrieval_rows(twin, s, 9, 3, 10) for s in twin.segments]
