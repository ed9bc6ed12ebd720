"""Means with 95 % intervals from a seeded bootstrap over samples.  (no torch)

Turns of one sample share a context and a history, so they are not independent: whole samples are redrawn, never turns.

A plain percentile bootstrap of few samples is too narrow: it takes the samples' spread for the population's, and a normal
distribution for Student's. Its tails are therefore moved out until a normal mean of n samples would have its 95 % (Hesterberg,
"What Teachers Should Know About the Bootstrap", 2015, §3.2, the expanded percentile interval). What was never seen cannot
be redrawn all the same: three samples hold the truth between them three times in four, and where all agree no width is
left (critical footprints allow for that, see `kvledger.critical.points`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from math import lgamma, sqrt
from statistics import NormalDist
from typing import TypeVar

import numpy as np

REDRAWS = 2000
_SEED = 20250617
_TAIL = 0.025

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; `low` and `high` are None where one sample leaves nothing to redraw."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast:
    """A recipe against the full cache on the very same turns. `ratio` is None where the full cache scores nothing."""

    pairs: int
    full: float
    difference: Estimate
    ratio: Estimate | None


@lru_cache(maxsize=64)
def _draw_weights(count: int, stratum: int = 0) -> np.ndarray:
    """[REDRAWS, count]: how often each sample is drawn. The same for equal counts, so recipes share their redraws; strata
    (tasks that are pooled) are drawn apart."""
    rng = np.random.default_rng((_SEED, stratum) if stratum else _SEED)
    return rng.multinomial(count, np.full(count, 1 / count), size=REDRAWS).astype(float)


@lru_cache(maxsize=256)
def _tail(counts: tuple[int, ...]) -> float:
    """The percentile at which the redraws of `counts` samples (of each stratum) have their 95 % interval's lower end."""
    free = sum(n - 1 for n in counts)
    narrow = sum(n - 1 for n in counts) / sum(counts)  # of the variance, what redraws show
    return 100 * NormalDist().cdf(-_student(free) / sqrt(narrow))


def _student(free: int) -> float:
    """The 97.5 % point of Student's t: 12.71 for one degree of freedom, 1.96 for many."""
    low, high = 1.9, 13.0
    for _ in range(40):
        middle = (low + high) / 2
        angles = np.linspace(0.0, np.arctan(middle / sqrt(free)), 2001)  # t = sqrt(free) tan(angle)
        constant = np.exp(lgamma((free + 1) / 2) - lgamma(free / 2)) / sqrt(np.pi)
        heights = np.cos(angles) ** (free - 1)
        inside = constant * float(((heights[1:] + heights[:-1]) * np.diff(angles)).sum()) / 2
        low, high = (middle, high) if inside < 0.5 - _TAIL else (low, middle)
    return (low + high) / 2


def _interval(draws: np.ndarray, *counts: int) -> tuple[float | None, float | None]:
    """Of redraws of as many samples as `counts` says, one number for each stratum."""
    finite = draws if np.isfinite(draws).all() else draws[np.isfinite(draws)]
    if not finite.size:
        return None, None
    tail = _tail(counts)
    return _quantile(finite, tail), _quantile(finite, 100 - tail)


def _quantile(values: np.ndarray, percent: float) -> float:
    """`np.percentile` of finite values, in a tenth of its time: a big run asks for tens of thousands."""
    place = percent / 100 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    parted = np.partition(values, (low, high))
    return float(parted[low] + (place - low) * (parted[high] - parted[low]))


def mean(samples: Mapping[Key, Sequence[float]]) -> Estimate:
    """Mean over all turns of `samples` (sample -> its turns' values), which must not be empty."""
    sums = np.array([sum(values) for values in samples.values()], dtype=float)
    counts = np.array([len(values) for values in samples.values()], dtype=float)
    middle = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(middle)
    weights = _draw_weights(len(sums))
    return Estimate(middle, *_interval((weights @ sums) / (weights @ counts), len(sums)))


def by_place(samples: Sequence[Mapping[int, float]]) -> dict[int, tuple[int, Estimate]]:
    """place (turn) -> how many samples have a value there, and their mean."""
    found = {}
    for place in sorted({place for values in samples for place in values}):
        values = np.array([values[place] for values in samples if place in values], dtype=float)
        found[place] = len(values), _plain_mean(values)
    return found


def _plain_mean(values: np.ndarray) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values.mean()))
    if (values == values[0]).all():
        return Estimate(float(values[0]), float(values[0]), float(values[0]))
    return Estimate(float(values.mean()), *_interval(_draw_weights(len(values)) @ values / len(values), len(values)))


def contrast(pairs: Mapping[Key, Sequence[tuple[float, float]]]) -> Contrast | None:
    """Difference and ratio of (value, full value) pairs, each sample redrawn with both sides. None without pairs."""
    if not pairs:
        return None
    ours = np.array([sum(a for a, _ in values) for values in pairs.values()], dtype=float)
    full = np.array([sum(b for _, b in values) for values in pairs.values()], dtype=float)
    counts = np.array([len(values) for values in pairs.values()], dtype=float)
    total = counts.sum()
    middle = float((ours.sum() - full.sum()) / total)
    spread: tuple[float | None, float | None] = (None, None)
    if len(counts) > 1:
        weights = _draw_weights(len(counts))
        spread = _interval((weights @ (ours - full)) / (weights @ counts), len(counts))
    return Contrast(int(total), float(full.sum() / total), Estimate(middle, *spread), _ratio(ours, full))


def _ratio(ours: np.ndarray, full: np.ndarray) -> Estimate | None:
    if full.sum() <= 0:
        return None
    middle = float(ours.sum() / full.sum())
    if len(ours) < 2:
        return Estimate(middle)
    weights = _draw_weights(len(ours))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(middle, *_interval((weights @ ours) / (weights @ full), len(ours)))


# ---- several tasks as one: the mean of their means, each task's samples redrawn apart ---------------------------------

Strata = Sequence[Mapping[Key, Sequence[tuple[float, ...]]]]


def pooled_draws(strata: Strata[Key]) -> tuple[np.ndarray, np.ndarray | None]:
    """Means [K] of the K values that each turn has, tasks weighing alike, and their redraws [REDRAWS, K]; no redraws where
    a task has a single sample."""
    means, draws = [], []
    for number, samples in enumerate(strata):
        sums = np.array([np.sum(values, axis=0) for values in samples.values()], dtype=float)
        counts = np.array([len(values) for values in samples.values()], dtype=float)
        means.append(sums.sum(axis=0) / counts.sum())
        if len(counts) > 1:
            weights = _draw_weights(len(counts), number)
            draws.append((weights @ sums) / (weights @ counts)[:, None])
    alone = len(draws) < len(strata)
    return np.mean(means, axis=0), None if alone else np.mean(draws, axis=0)


def estimate(mean: float, draws: np.ndarray | None, strata: Sequence[Sized]) -> Estimate:
    """A mean with the interval of its redraws [REDRAWS] of the samples of `strata`."""
    return Estimate(float(mean)) if draws is None else Estimate(float(mean), *_interval(draws, *map(len, strata)))


def pooled(strata: Strata[Key]) -> Contrast:
    """`contrast` of (value, full value) pairs over several tasks. `strata` must not be empty, nor any of them."""
    means, draws = pooled_draws(strata)
    ours, full = (None, None) if draws is None else (draws[:, 0], draws[:, 1])
    gap = estimate(means[0] - means[1], None if ours is None or full is None else ours - full, strata)
    ratio = None
    if means[1] > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = estimate(means[0] / means[1], None if ours is None or full is None else ours / full, strata)
    turns = sum(len(values) for samples in strata for values in samples.values())
    return Contrast(turns, float(means[1]), gap, ratio)
