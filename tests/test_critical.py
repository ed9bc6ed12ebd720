"""The critical footprint: the paper's numbers from its own curves, intervals that hold what they should, searches that end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from math import nan

import numpy as np
import pytest
from curves import CURVES, KEEPS, points_of, synthetic

from kvledger.critical.crossing import Bound, crossing, lasting, lowest
from kvledger.critical.points import Paired, Point, Ratio, pair, point, score_ratio

# arXiv 2506.17121: points (footprint, score) of its Figure 3, digitised to about 0.3 on both axes; what the full cache scores;
# and the same cell of Table 2 (chunks of 32K, F = 0.9)
FIGURE_3 = {
    "recall": (95.2, {
        "DuoAttention": ("58", [(60.1, 95), (53.4, 59.75)]),
        "PruLong": ("<47", [(79.8, 95.4), (73.3, 96.0), (66.7, 94.2), (60.1, 94.3), (53.4, 92.6), (46.7, 87.7)]),  # 46
        "PyramidKV, patched": ("64", [(93.4, 94.2), (86.6, 93.5), (79.8, 91.9), (72.9, 88.6), (66.1, 87.3), (59.2, 82.4),
                                      (52.4, 74.2)]),
        "PyramidKV, naive": (">93", [(93.4, 82.5), (86.6, 68.3)]),
    }),
    "rag": (59.5, {
        "DuoAttention": ("49", [(56.7, 58.1), (49.3, 53.8), (42, 42)]),
        "PruLong": ("37", [(85.5, 61.0), (78.4, 61.2), (64, 61.4), (56.8, 61.2), (49.4, 61.5), (42, 59.6), (34.8, 50.4)]),
        "PyramidKV, patched": ("<34", [(92.7, 59.4), (85.2, 59.3), (77.9, 59.8), (70.5, 59.7), (63.2, 60.1), (55.7, 59.9),
                                       (48.3, 59.9), (41.1, 58.6), (33.8, 57.7)]),
        "PyramidKV, naive": ("44", [(78, 58.2), (70.6, 57.5), (63.3, 57.9), (55.9, 56.7), (48.5, 55.0), (41.1, 52.7),
                                    (33.7, 50.9)]),
    }),
    "icl": (83.9, {
        "DuoAttention": ("49", [(51.7, 77.7), (44.6, 69.8), (37.6, 63.4), (34.1, 61.9)]),
        "PruLong": ("38", [(79.3, 81.2), (44.6, 79.9), (37.6, 74.6)]),
        "PyramidKV, patched": ("<36", [(93.1, 83.8), (86, 83.7), (78.9, 83.3), (71.8, 82.9), (64.7, 83.1), (57.7, 82.4),
                                       (50.6, 81.7), (43.5, 82.1), (36.4, 79.9)]),
        "PyramidKV, naive": ("42", [(64.7, 81.3), (57.7, 80.4), (50.6, 79.3), (43.4, 76.3), (36.4, 72.7)]),
    }),
}  # fmt: skip
CELLS = [(c, m, cell, full, curve) for c, (full, rows) in FIGURE_3.items() for m, (cell, curve) in rows.items()]


def curve(points: list[tuple[float, float]], full: float = 1.0, half: float = 0.0, samples: int = 9) -> list[Point]:
    """Points of (footprint, score) with intervals of that half width."""
    return [Point(x, at(y / full, half), y, full, samples) for x, y in points]


def at(ratio: float, half: float = 0.0) -> Ratio:
    return Ratio(ratio, ratio - half, ratio + half, ratio - 2 * half, ratio + 2 * half)


@pytest.mark.parametrize("category, method, cell, full, points", CELLS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_papers_table_2_follows_from_its_figure_3(
    category: str, method: str, cell: str, full: float, points: list[tuple[float, float]]
) -> None:
    found = crossing(curve([(x / 100, y) for x, y in points], full), 0.9)
    assert found is not None
    assert found.value.side == (cell[0] if cell[0] in "<>" else "=")
    assert round(abs(100 * found.value.value - float(cell.strip("<>"))), 1) <= 0.8


def test_the_two_rules_differ_where_a_curve_dips() -> None:
    x, y = [0.3, 0.4, 0.5, 0.6, 0.7], [0.5, 0.95, 0.85, 0.89, 0.97]
    assert lowest(x, y, 0.9).value == pytest.approx(0.3 + 0.1 * 0.4 / 0.45)
    assert lasting(x, y, 0.9).value == pytest.approx(0.6 + 0.1 * 0.01 / 0.08)


def test_what_is_censored_says_so() -> None:
    assert str(lowest([0.31, 0.5], [0.95, 0.5], 0.9)) == "<31"
    assert str(lasting([0.31, 0.5], [0.95, 0.91], 0.9)) == "<31"
    assert str(lowest([0.3, 0.93], [0.5, 0.8], 0.9)) == str(lasting([0.3, 0.93], [0.95, 0.8], 0.9)) == ">93"
    assert str(lowest([0.3, 1.2], [0.5, 0.8], 0.9)) == "never", "the dearest budget costs more than the full cache"
    assert (Bound(0.3, "<").below, Bound(0.3, "<").above) == (0.0, 0.3)
    assert (Bound(0.9, ">").below, Bound(0.9, ">").above) == (0.9, 1.0)


def test_an_interval_ends_where_the_points_intervals_end() -> None:
    found = crossing(curve([(0.2, 0.5), (0.4, 0.7), (0.6, 0.9), (0.8, 1.1)], half=0.1), 0.9)
    assert found is not None
    assert (found.value, found.low.value, found.high.value) == (Bound(0.6), pytest.approx(0.5), pytest.approx(0.7))
    assert found.holds(Bound(0.55))
    assert not found.holds(Bound(0.45))
    assert not found.holds(Bound(0.8, ">"))
    assert found.holds(Bound(0.65, "<"))


def test_a_point_left_after_an_early_look_counts_with_its_wider_interval() -> None:
    points = curve([(0.2, 0.5), (0.4, 0.7), (0.6, 0.9)], half=0.1)
    early = [*points[:1], Point(0.4, at(0.7, 0.1), 0.7, 1.0, samples=4), *points[2:]]
    ends = [found.low.value for p in (points, early) if (found := crossing(p, 0.9)) is not None]
    assert ends == [pytest.approx(0.5), pytest.approx(0.4)]


@pytest.mark.parametrize(
    "target, rule, word", [(0, "lowest", "target=0"), (1.0, "lowest", "target"), (0.9, "first", "lasting")]
)
def test_what_cannot_be_asked_is_refused(target: float, rule: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        crossing(curve([(0.5, 0.9)]), target, rule)


# ---- the interval of a ratio ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right, low, high", [(18, 0.713, 0.979), (20, 0.883, 1.0)])
def test_with_yes_and_no_answers_the_interval_is_jeffreys(right: int, low: float, high: float) -> None:
    found = score_ratio([[Paired(float(i < right), 1.0, 1) for i in range(20)]])
    assert found is not None
    assert (found.value, found.low, found.high) == (
        right / 20,
        pytest.approx(low, abs=0.01),
        pytest.approx(high, abs=0.01),
    )


def test_the_interval_equals_a_bootstrap_written_out() -> None:
    """Redraw by redraw: weights of samples, ghosts of one answer's weight, ratio of weighted means."""
    rng = np.random.default_rng(0)
    samples = [Paired(float(rng.integers(0, 4)), 3.0, 4) for _ in range(12)]
    ratios = []
    for _ in range(4000):
        weights = [rng.gamma(1.0) for _ in samples]
        lost, kept = rng.gamma(0.5, size=2) * (1 + 3 * 0.25) / 4
        ours = sum(w * s.ours for w, s in zip(weights, samples)) + kept * 3.0
        ratios.append(ours / (sum(w * s.full for w, s in zip(weights, samples)) + (lost + kept) * 3.0))
    found = score_ratio([samples])
    assert found is not None
    expected = np.percentile(ratios, [2.5, 97.5, 0.25, 99.75])
    assert [found.low, found.high, found.least, found.most] == pytest.approx(list(expected), abs=0.02)


def test_tasks_of_a_category_weigh_alike_whatever_their_samples() -> None:
    many, few = [Paired(1.0, 1.0, 1)] * 30, [Paired(0.0, 0.5, 1)] * 3
    found = score_ratio([many, few])
    assert found is not None
    assert found.value == pytest.approx((1.0 + 0.0) / (1.0 + 0.5))


def test_a_full_cache_that_scores_nothing_gives_no_ratio() -> None:
    assert score_ratio([[Paired(0.0, 0.0, 5), Paired(1.0, 0.0, 5)]]) is None
    assert crossing([Point(0.5, None, 0.2, 0.0, 2)], 0.9) is None


@dataclass(frozen=True)
class Answer:
    sample: int
    turn: int
    score: float
    footprint: float = 0.5
    mode: str = "multi-turn"
    seed: int = 0
    byte_footprint: float = 0.6
    peak: float = 0.7
    stored_bytes: int = 8
    full_bytes: int = 10


def test_pairs_are_of_the_same_turns_and_without_what_is_no_number() -> None:
    ours = [Answer(0, 0, 1.0), Answer(0, 1, nan), Answer(1, 0, 0.5), Answer(2, 0, 1.0)]
    full = [Answer(0, 0, 1.0), Answer(0, 1, 1.0), Answer(1, 0, 1.0), Answer(3, 0, 1.0)]
    assert pair(ours, full) == ([Paired(1.0, 1.0, 1), Paired(0.5, 1.0, 1)], 1)


def test_a_point_is_of_whole_requests_on_the_axis_asked_for() -> None:
    ours = [Answer(0, 0, 1.0, footprint=0.4), Answer(0, 1, 1.0, footprint=0.6)]
    found = {axis: point([(ours, ours)], axis) for axis in ("entries", "bytes", "peak", "stored")}
    assert [p.footprint for p in found.values() if p is not None] == [0.6, 0.6, 0.7, 0.8]
    assert point([(ours, [Answer(5, 0, 1.0)])]) is None, "no turn in common"
    assert point([([Answer(0, 0, 1.0, footprint=nan)], ours)]) is None, "no footprint"
    with pytest.raises(ValueError, match="axis='tokens'"):
        point([(ours, ours)], "tokens")


# ---- do the intervals hold the truth? ------------------------------------------------------------------------------------


def test_intervals_hold_the_known_crossing_in_95_of_100_runs() -> None:
    """2,000 synthetic runs of nine budgets: four known curves, many turns of few samples and single turns of more."""
    rng = np.random.default_rng(17)
    held: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for (samples, turns), ratios in product([(20, 5), (30, 1)], CURVES.values()):
        truth = lowest(list(KEEPS), list(ratios), 0.9).value
        for _ in range(250):
            ours, full = synthetic(rng, ratios, samples, turns)
            points = list(points_of(ours, full, turns, dict.fromkeys(range(9), samples)).values())
            for rule in ("lowest", "lasting"):
                found = crossing(points, 0.9, rule)
                assert found is not None
                held[rule, samples].append(found.low.below <= truth <= found.high.above)
    assert all(0.92 <= np.mean(runs) <= 0.985 for runs in held.values())
    for rule in ("lowest", "lasting"):
        assert 0.93 <= np.mean(held[rule, 20] + held[rule, 30]) <= 0.97
