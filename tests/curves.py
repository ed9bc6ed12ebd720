"""Synthetic answers over known curves of score ratio by budget, for the critical footprint's tests."""

from __future__ import annotations

import numpy as np

from kvledger.critical.points import Paired, Point, score_ratio

KEEPS = np.arange(1, 10) / 10
CURVES = {
    "steep": 1 / (1 + np.exp(-(KEEPS - 0.35) / 0.06)),
    "slow": 1 - np.exp(-4.5 * KEEPS),
    "flat": 0.6 + 0.4 * np.minimum(1, KEEPS / 0.8),
    "soon": np.minimum(1.0, 0.7 + KEEPS),
}


def synthetic(rng: np.random.Generator, ratios: np.ndarray, samples: int, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """(ours [samples, budgets], full [samples]): sums of right answers, whose ratio is `ratios` in the long run. Turns of a
    sample and budgets of a turn have things in common, as they do in a model's answers."""
    full = rng.random((samples, turns)) < 0.95
    of_turn = rng.random((samples, turns, 1))
    luck = np.where(rng.random(of_turn.shape) < 0.35, rng.random((samples, 1, 1)), of_turn)
    own = rng.random((samples, turns, len(ratios)))
    luck = np.where(rng.random(own.shape) < 0.5, luck, own)
    right = (luck < ratios) & full[..., None]
    return right.sum(1).astype(float), full.sum(1).astype(float)


def points_of(ours: np.ndarray, full: np.ndarray, turns: int, asked: dict[int, int]) -> dict[int, Point]:
    """budget -> its point on that many samples."""
    return {
        j: Point(KEEPS[j], score_ratio([[Paired(ours[i, j], full[i], turns) for i in range(n)]]), 0, 0, n)
        for j, n in asked.items()
    }
