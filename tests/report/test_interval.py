"""The bootstrap: paired, seeded, over whole samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvledger.report.interval import _quantile, contrast, mean


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
