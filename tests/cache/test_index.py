"""An index that follows an arena through its life is at every moment the one that would be built from its rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache import choose, native
from kvledger.cache.arena import Arena
from kvledger.cache.estimate import coded, estimated
from kvledger.cache.index import Index, against_bounds, bounds, logits

SIZE, HEADS, DIM = 4, 2, 8


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grow(arena: Arena, tokens: int, seed: int) -> None:
    arena.append(*(draw(arena.batch, HEADS, tokens, DIM, seed=seed + i) for i in (0, 7)))


def check(index: Index, arena: Arena, segments: list[int]) -> None:
    """Entries are the pages' own; heads that are not followed have none."""
    for s in range(len(arena.length)):
        pages = arena.length[s] // SIZE if s in segments else 0
        assert index.count[s] == pages
        assert index.capacity[s] >= pages
        keys, _ = arena.span(s, 0, pages * SIZE)
        for table, want in zip(index.tables, index.summary(keys.unflatten(0, (-1, SIZE))) if pages else ()):
            assert torch.equal(table[index.start[s] : index.start[s] + pages], want)
    assert index.nbytes == sum(x.numel() * x.element_size() for x in index.tables)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 19)),
        st.tuples(st.just("back"), st.integers(1, 9)),
        st.tuples(st.sampled_from(["keep", "slide", "fork", "other", "look", "select"]), st.integers(0, 99)),
    ),
    max_size=14,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(steps=STEPS, summary=st.sampled_from([bounds, coded]), all_heads=st.booleans())
def test_it_follows_every_change(steps, summary, all_heads) -> None:
    arena, index = Arena(2, HEADS), Index(SIZE, summary)
    segments = [0, 1, 2, 3] if all_heads else [0, 2]
    grow(arena, 10, 0)
    branch: tuple[Arena, Index] | None = None
    for i, (what, n) in enumerate(steps):
        if what == "append":
            grow(arena, n, 13 * i)
        elif what == "back":
            try:
                arena.rollback([max(0, seen - n) for seen in arena.seen])
            except ValueError:  # past an eviction
                continue
            index.cut(arena)
        elif what == "keep":
            arena.keep([[draw(arena.length[b * HEADS + h], seed=n + h) > -0.8 for h in range(HEADS)] for b in range(2)])
        elif what == "slide":
            arena.slide(n % 4, 2, 5)
        elif what == "select":
            order = [[0, 0], [1, 0], [1, 1]][n % 3]
            arena.select(order)
            index.select([b * HEADS + h for b in order for h in range(HEADS)])
        elif what == "fork":
            branch = arena.fork(), index.fork()
        elif what == "other" and branch is not None:
            (arena, index), branch = branch, (arena, index)
        else:
            index.update(arena, segments)
            check(index, arena, segments)
    for one, its in [(arena, index), *([branch] if branch else [])]:
        its.update(one, segments)
    for one, its in [(arena, index), *([branch] if branch else [])]:  # after both have written
        check(its, one, segments)


def test_a_token_costs_an_entry_once_a_page() -> None:
    arena, index, calls = Arena(1, HEADS), Index(SIZE, bounds), []
    index.summary = lambda keys: calls.append(len(keys)) or bounds(keys)  # type: ignore[func-returns-value]
    grow(arena, 41, 0)
    index.update(arena, [0, 1])
    assert calls == [10, 10]
    for i in range(8):
        grow(arena, 1, i)
        index.update(arena, [0, 1])
    assert calls == [10, 10, 1, 1, 1, 1]


def test_products_are_those_of_plain_multiplication() -> None:
    q, rows = draw(2, 3, 16, seed=0), draw(50, 16, seed=1)
    want = torch.cat([q[1] @ rows[3:10].T, q[0] @ rows[20:50].T, q[1] @ rows[40:40].T], -1) * 0.5
    spans = [1, 3, 7, 0, 20, 30, 1, 40, 0]
    torch.testing.assert_close(logits(q, rows, spans, 0.5), want)
    torch.testing.assert_close(logits(q.double(), rows.double(), spans, 0.5).float(), want)


def test_bounds_and_estimates_are_as_near_as_they_say() -> None:
    arena, index = Arena(1, 1), Index(16, coded)
    arena.append(draw(1, 1, 64, 32, seed=0), draw(1, 1, 64, 32, seed=1))
    index.update(arena, [0])
    q = draw(1, 5, 32, seed=2)
    exact = q[0] @ arena.k.T
    high = logits(against_bounds(q), index.tables[0], index.spans([0]), 1.0)
    assert bool((high >= exact.unflatten(1, (4, 16)).amax(-1)).all())
    guess = estimated(q, index, [0], [torch.tensor([0, 3])], 1.0)[0]
    rows = torch.cat([torch.arange(16), torch.arange(48, 64)])
    step = (arena.k.amax(-1) - arena.k.amin(-1)) / 15
    error = q[0].abs().sum(-1)[:, None] * step[rows] / 2  # half a step a number
    assert bool(((guess - exact[:, rows]).abs() <= error * 1.001).all())
    assert float((guess - exact[:, rows]).abs().max()) > 0


def test_a_constant_key_is_coded_exactly() -> None:
    arena, index = Arena(1, 1), Index(2, coded)
    arena.append(torch.full((1, 1, 2, 4), 0.3), torch.zeros(1, 1, 2, 4))
    index.update(arena, [0])
    torch.testing.assert_close(
        estimated(torch.ones(1, 1, 4), index, [0], [torch.tensor([0])], 1.0)[0], torch.tensor([[1.2, 1.2]])
    )


def test_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert choose.top_p(logits, 0.4).tolist() == [False, True, False, False]
    assert choose.top_p(logits, 0.41).tolist() == [False, True, False, True]
    assert choose.top_p(logits, 1.0).tolist() == [True] * 4
    assert choose.top_p(torch.tensor([0.0, -torch.inf]), 1.0).tolist() == [True, False]


def test_spans_join_neighbours_and_end_with_the_segment() -> None:
    arena = Arena(1, 2)
    grow(arena, 10, 0)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert choose.spans_of(mask, arena, [0, 1], 4).tolist() == [[0, 0, 8], [1, 10, 4], [1, 18, 2]]
    assert choose.spans_of(mask[1:], arena, [1], 4).tolist() == [[1, 10, 4], [1, 18, 2]]
    assert choose.spans_of(torch.zeros(2, 3, dtype=torch.bool), arena, [0, 1]).shape == (0, 3)


@pytest.mark.skipif(native._library() is None, reason="no C compiler that makes the reader")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    groups=st.integers(1, 3),
    k=st.integers(1, 40),
    odd=st.sampled_from([None, -torch.inf, torch.nan]),
    seed=st.integers(0, 99),
)
def test_pages_chosen_in_c_are_those_of_top_k(lengths, groups, k, odd, seed) -> None:
    arena = Arena(1, len(lengths))
    arena.append(*[draw(1, len(lengths), max(lengths), 1, seed=seed)] * 2)
    arena.keep([torch.stack([torch.arange(max(lengths)) < n for n in lengths])])
    counts, segments = [n // SIZE for n in lengths], list(range(len(lengths)))
    found = draw(groups, sum(counts), seed=seed)
    if odd is not None:
        found[:, ::3] = odd
    facts = [x for s in segments for x in (s, arena.start[s], lengths[s], counts[s])]
    pages = torch.tensor([-(-n // SIZE) for n in lengths])
    scores = choose.padded(found.nan_to_num(-torch.inf, neginf=-torch.inf).amax(0), counts, int(pages.max()))
    scores[torch.arange(len(pages)), pages - 1] = torch.inf
    want = choose.spans_of(choose.top_k(scores, k), arena, segments, SIZE)
    assert native.pages(found, facts, k, SIZE).tolist() == want.tolist()


@pytest.mark.skipif(native._library() is None, reason="no C compiler that makes the reader")
def test_of_equal_pages_no_more_are_read_than_asked_for() -> None:
    spans = native.pages(torch.zeros(2, 10), [0, 7, 22, 5, 3, 40, 20, 5], 3, SIZE)
    assert spans.tolist() == [[0, 7, 8], [0, 27, 2], [3, 40, 8], [3, 56, 4]]
