"""Who gets how much: sums, floors, and the numbers of the published pyramid."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvledger.methods.allocate import across_heads, across_layers, even, pyramid
from kvledger.methods.base import Method


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Scores [H, N] with many ties, rows that stay (+inf), rows that are not there (-inf), and a budget."""
    H, N = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    levels, source = draw(st.integers(1, 50)), torch.Generator().manual_seed(draw(st.integers(0, 999)))
    scores = torch.randint(0, levels, (H, N), generator=source).float()
    budget = draw(st.integers(0, N))
    scores[:, N - draw(st.integers(0, budget)) :] = torch.inf
    absent = torch.randint(0, N - budget + 1, (H, 1), generator=source)
    return scores.masked_fill(torch.arange(N) < absent, -torch.inf), budget


@given(problems())
def test_uniform_gives_every_head_its_budget(problem: tuple[torch.Tensor, int]) -> None:
    scores, budget = problem
    for h, row in enumerate(even(scores, budget)):
        best = sorted(range(len(row)), key=lambda i: (-float(scores[h, i]), i))[:budget]
        assert set(row.nonzero().squeeze(-1).tolist()) == set(best)


@given(problems(), st.floats(0, 1))
def test_competing_heads_share_exactly_the_total(problem: tuple[torch.Tensor, int], floor: float) -> None:
    scores, budget = problem
    mask = across_heads(scores, budget, floor)
    fixed = int((scores == torch.inf).sum(1).max())
    assert int(mask.sum()) == len(scores) * budget
    assert int(mask.sum(1).min()) >= fixed + int(floor * (budget - fixed))
    assert bool(mask[scores == torch.inf].all())
    assert not bool(mask[scores == -torch.inf].any())


@given(problems(), problems())
def test_competing_layers_share_exactly_the_total(
    one: tuple[torch.Tensor, int], other: tuple[torch.Tensor, int]
) -> None:
    layers, budget = [one[0], other[0]], min(one[1], other[1])
    masks = across_layers(layers, budget)
    count = sum(len(layer) for layer in layers) * budget
    ranked = sorted(
        ((-float(x), i) for i, x in enumerate(torch.cat([layer.flatten() for layer in layers]).tolist())),
    )[:count]
    flat = torch.cat([mask.flatten() for mask in masks])
    assert set(flat.nonzero().squeeze(-1).tolist()) == {i for _, i in ranked}
    assert [mask.shape for mask in masks] == [layer.shape for layer in layers]


def test_the_pyramid_of_the_published_code() -> None:
    """32 layers, capacity 4096, window 32, a long prompt."""
    rows = [pyramid(4096, 32, 100_000, layer, 32, 20) - 32 for layer in range(32)]
    assert (rows[0], rows[31]) == (7925, 206)
    assert {a - b for a, b in pairwise(rows)} == {249}
    assert (4096 - 32) // 20 == 203
    assert 0 <= sum(rows) / 32 - (4096 - 32) < 3


def test_a_pyramid_never_asks_for_more_rows_than_there_are() -> None:
    rows = [pyramid(50, 10, 85, layer, 8, 20) for layer in range(8)]
    assert rows[0] == 85
    assert rows == sorted(rows, reverse=True)
    assert abs(sum(rows) / 8 - 50) < 8


@given(st.integers(1, 300), st.integers(0, 40), st.integers(1, 600), st.integers(1, 40), st.integers(1, 30))
def test_a_pyramid_spends_the_total(budget: int, fixed: int, candidates: int, layers: int, beta: int) -> None:
    budget, fixed = min(budget, candidates), min(fixed, budget, candidates)
    rows = [pyramid(budget, fixed, candidates, layer, layers, beta) for layer in range(layers)]
    assert 0 <= sum(rows) - layers * budget <= layers * layers / 2
    assert all(0 < n <= candidates for n in rows)


@given(st.floats(0.001, 1), st.integers(1, 10_000))
def test_rows_to_keep(keep: float, candidates: int) -> None:
    rows = Method(keep=keep).allowance(candidates, 1)
    assert rows == max(1, int(keep * candidates + 1e-9))
    assert rows <= candidates


def test_a_round_share_is_exact() -> None:
    assert [Method(keep=keep).allowance(10, 1) for keep in (0.1, 0.3, 0.7, 1.0)] == [1, 3, 7, 10]
    assert Method(keep=0.29).allowance(100, 1) == 29
