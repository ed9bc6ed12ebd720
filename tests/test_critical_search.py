"""The search for a critical footprint: what it asks for, what it holds, when it ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from curves import CURVES, KEEPS, points_of, synthetic

from kvledger.critical.crossing import crossing, lowest
from kvledger.critical.points import Point
from kvledger.critical.search import CLOSED, NARROW, SPENT, UNDEFINED, Aim, Step, next_step


def pursue(
    ratios: np.ndarray, aim: Aim, rng: np.random.Generator, turns: int = 5
) -> tuple[dict[int, Point], list[Step], str]:
    """A whole search on synthetic answers: what was measured, the steps, why it ended."""
    ours, full = synthetic(rng, ratios, aim.samples, turns)
    measured: dict[int, Point] = {}
    steps: list[Step] = []
    while isinstance(step := next_step(measured, len(ratios), aim), Step):
        steps.append(step)
        measured |= points_of(ours, full, turns, {step.place: step.samples})
    return measured, steps, step


def searches(aim: Aim, seed: int, runs: int) -> Iterator[tuple[np.ndarray, dict[int, Point], list[Step], str]]:
    rng = np.random.default_rng(seed)
    for number in range(runs):
        ratios = list(CURVES.values())[number % len(CURVES)]
        yield ratios, *pursue(ratios, aim, rng)


def test_a_search_holds_the_known_crossing_and_keeps_to_its_budget() -> None:
    aim = Aim(samples=16, budget=64)
    held = []
    for ratios, measured, steps, end in searches(aim, 5, 160):
        found = crossing(list(measured.values()), 0.9)
        assert found is not None
        held.append(found.holds(lowest(list(KEEPS), list(ratios), 0.9)))
        assert sum(p.samples for p in measured.values()) <= 64
        assert len(steps) == len(set(steps)), "nothing is asked twice"
        assert end in (NARROW, SPENT, CLOSED)
        assert found.width <= aim.width if end == NARROW else True
    assert np.mean(held) >= 0.94


def test_a_clear_case_costs_little_and_a_close_one_gets_the_samples() -> None:
    aim = Aim(samples=16, width=0.2)
    steep = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    measured, steps, _ = pursue(steep, aim, np.random.default_rng(3))
    assert steps[:3] == [Step(3, 4), Step(1, 4), Step(2, 4)], "halves, on few samples"
    assert measured[2].samples == 4, "nothing right: clear at the first look"
    assert measured[3].samples == 16, "all right is not clear before all samples are in"


def test_a_search_without_a_limit_asks_until_nothing_is_open() -> None:
    for _, measured, _, end in searches(Aim(samples=8, width=1e-9), 11, 12):
        assert end == CLOSED
        assert all(p.samples <= 8 for p in measured.values())


def test_a_search_ends_where_the_full_cache_scores_nothing_on_all_samples() -> None:
    nothing = {4: Point(0.5, None, 0.0, 0.0, 2)}
    assert next_step(nothing, 9, Aim(first=2, samples=6)) == Step(4, 6), "two samples are no proof"
    assert next_step({4: Point(0.5, None, 0.0, 0.0, 6)}, 9, Aim(first=2, samples=6)) == UNDEFINED


@pytest.mark.parametrize("rule", ["lowest", "lasting"])
def test_a_curve_that_never_or_always_reaches_the_target_is_followed_to_its_end(rule: str) -> None:
    aim = Aim(samples=4, width=1e-9, rule=rule)
    rng = np.random.default_rng(2)
    never, *_ = pursue(np.full(9, 0.2), aim, rng)
    always, *_ = pursue(np.full(9, 1.0), aim, rng)
    assert 8 in never
    assert 0 in always
    assert [str(found.value) for p in (never, always) if (found := crossing(list(p.values()), 0.9, rule))] == [
        ">90",
        "<10",
    ]


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(target=1.5), "target=1.5"),
        (dict(width=0), "width=0"),
        (dict(first=9, samples=8), "first=9"),
        (dict(budget=-1), "-1"),
    ],
)
def test_an_aim_that_cannot_be_is_refused(options: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Aim(**options)  # type: ignore[arg-type]
