"""Means with 95 % intervals from a seeded bootstrap over samples.  (no torch)

Turns of one sample share a context and a history, so they are not independent: whole samples are redrawn, never turns.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

REDRAWS = 2000
_SEED = 20250617
_TAILS = (2.5, 97.5)

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


@lru_cache(maxsize=4)
def _draw_weights(count: int) -> np.ndarray:
    """[REDRAWS, count]: how often each sample is drawn. The same for equal counts, so recipes share their redraws."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(count, np.full(count, 1 / count), size=REDRAWS).astype(float)


def _interval(draws: np.ndarray) -> tuple[float | None, float | None]:
    finite = draws[np.isfinite(draws)]
    if not finite.size:
        return None, None
    low, high = np.percentile(finite, _TAILS)
    return float(low), float(high)


def mean(samples: Mapping[Key, Sequence[float]]) -> Estimate:
    """Mean over all turns of `samples` (sample -> its turns' values), which must not be empty."""
    sums = np.array([sum(values) for values in samples.values()], dtype=float)
    counts = np.array([len(values) for values in samples.values()], dtype=float)
    middle = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(middle)
    weights = _draw_weights(len(sums))
    return Estimate(middle, *_interval((weights @ sums) / (weights @ counts)))


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
        spread = _interval((weights @ (ours - full)) / (weights @ counts))
    return Contrast(int(total), float(full.sum() / total), Estimate(middle, *spread), _ratio(ours, full))


def _ratio(ours: np.ndarray, full: np.ndarray) -> Estimate | None:
    if full.sum() <= 0:
        return None
    middle = float(ours.sum() / full.sum())
    if len(ours) < 2:
        return Estimate(middle)
    weights = _draw_weights(len(ours))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(middle, *_interval((weights @ ours) / (weights @ full)))
