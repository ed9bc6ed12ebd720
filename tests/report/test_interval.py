"""The bootstrap: paired, seeded, over whole samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvledger.report.interval import _quantile, _student, _tail, contrast, mean, pooled


def test_mean_weighs_turns_and_not_samples() -> None:
    assert mean({"a": [1.0, 1.0, 1.0], "b": [0.0]}).mean == 0.75


def test_one_sample_has_no_interval_however_many_turns_it_has() -> None:
    estimate = mean({"a": [1.0, 0.0, 1.0]})
    assert (estimate.low, estimate.high) == (None, None)


def test_the_same_scores_give_the_same_interval() -> None:
    scores = {number: [float(number % 3 == 0)] for number in range(20)}
    assert mean(scores) == mean(scores)


def test_interval_is_near_the_normal_one() -> None:
    scores = {number: [float(number % 2)] for number in range(100)}
    estimate = mean(scores)
    assert estimate.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.012)
    assert estimate.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.012)


def test_whole_samples_are_redrawn() -> None:
    """Ten equal turns of a sample are one observation: repeating turns must not narrow the interval."""
    once = mean({number: [float(number % 2)] for number in range(20)})
    often = mean({number: [float(number % 2)] * 10 for number in range(20)})
    assert (once.low, once.high) == (often.low, often.high)


def test_pairing_removes_what_samples_share() -> None:
    """Hard and easy samples, each losing exactly 0.1: the difference is certain although the scores are not."""
    pairs = {number: [(number / 20 - 0.1, number / 20)] for number in range(2, 20)}
    found = contrast(pairs)
    assert found is not None
    assert found.difference.mean == pytest.approx(-0.1)
    assert found.difference.low == pytest.approx(-0.1)
    assert found.difference.high == pytest.approx(-0.1)
    assert found.ratio is not None
    assert found.ratio.low is not None
    assert found.ratio.low < found.ratio.mean < 1


def test_no_pairs_give_no_contrast_and_a_full_cache_at_zero_no_ratio() -> None:
    assert contrast({}) is None
    nothing = contrast({0: [(0.5, 0.0)], 1: [(0.0, 0.0)]})
    assert nothing is not None
    assert nothing.ratio is None
    assert nothing.difference.mean == 0.25


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_quantiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert _quantile(np.array(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("free", "value"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1000, 1.962)])
def test_student_s_points_are_those_of_the_tables(free: int, value: float) -> None:
    assert _student(free) == pytest.approx(value, abs=0.001)


def test_many_samples_have_the_plain_interval_and_few_a_wider_one() -> None:
    assert _tail((100_000,)) == pytest.approx(2.5, abs=0.01)
    assert _tail((3,)) < _tail((10,)) < _tail((50,)) < 2.5
    assert _tail((3, 3, 3, 3)) > _tail((3,))  # each task's few contexts speak for the spread of the others'


@pytest.mark.parametrize(("count", "least"), [(5, 0.88), (10, 0.92)])
def test_intervals_of_few_samples_hold_the_truth(count: int, least: float) -> None:
    """Percentiles 2.5 and 97.5 of plain redraws do so 84 and 90 times of 100."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = mean(dict(enumerate([[x] for x in rng.normal(size=count).tolist()])))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert least <= held / 400 <= 0.98


def test_a_pooled_interval_counts_the_contexts_of_all_tasks() -> None:
    rng = np.random.default_rng(1)
    task = [{i: [(x, 1.0)] for i, x in enumerate(rng.random(4).tolist())} for _ in range(6)]
    one, six = pooled(task[:1]).difference, pooled(task).difference
    assert one.low is not None
    assert one.high is not None
    assert six.low is not None
    assert six.high is not None
    assert six.high - six.low < one.high - one.low
