"""Ranks only outside the noise: methods that cannot be told apart share a place.  (no torch)

Recipes of one setting and keep meet the same contexts, so each pair is compared on those, whole contexts redrawn. The best
mean leads the first group; every recipe whose difference to the leader has a 95 % interval that reaches zero is in it. The
best of the rest leads the next group, and so on. Intervals are not widened for the number of comparisons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Sized

import numpy as np

from .interval import estimate, pooled_draws
from .tables import Row, ScoreTable, Setting

LEAST = 6  # contexts; with five or fewer even a difference of one sign throughout happens by chance once in 16
Places = Mapping[tuple[Setting, str], int]
Rivals = Mapping[tuple[Setting, float], Sequence[Row]]


def rivals(rows: Sequence[Row]) -> dict[tuple[Setting, float], list[Row]]:
    """(setting, keep) -> the recipes that compete there; the full cache does not."""
    found: dict[tuple[Setting, float], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.full:
            found[row.setting, row.keep].append(row)
    return found


def places(
    rows: Sequence[Row], scores: ScoreTable, tasks: Mapping[str, Sequence[str]]
) -> dict[tuple[Setting, str], int]:
    """(setting, recipe) -> place, from 1. `tasks` are the tasks of a pooled setting. Without an entry: alone at its keep,
    or too few contexts that all rivals have met."""
    found: dict[tuple[Setting, str], int] = {}
    for (setting, _), group in rivals(rows).items():
        strata = [
            _stratum(setting._replace(task=task), group, scores) for task in tasks.get(setting.task, (setting.task,))
        ]
        if len(group) < 2 or any(len(samples) < 2 for samples in strata) or sum(map(len, strata)) < LEAST:
            continue
        means, draws = pooled_draws(strata)
        if draws is not None:
            for number, row in zip(_groups(means, draws, strata), group, strict=True):
                found[setting, row.recipe] = number
    return found


def _stratum(
    setting: Setting, group: Sequence[Row], scores: ScoreTable
) -> dict[tuple[int, int], list[tuple[float, ...]]]:
    """sample -> for each turn that all rivals answered, their scores."""
    theirs = [scores.get((setting, row.recipe), {}) for row in group]
    found = {}
    for sample, turns in theirs[0].items():
        values = [
            tuple(other[sample][turn] for other in theirs)
            for turn in turns
            if all(turn in other.get(sample, {}) for other in theirs)
        ]
        if values:
            found[sample] = values
    return found


def _groups(means: np.ndarray, draws: np.ndarray, strata: Sequence[Sized]) -> list[int]:
    """A place for each of the columns of `draws` [REDRAWS, R]."""
    given = [0] * len(means)
    left = sorted(range(len(means)), key=lambda number: -means[number])
    place = 1
    while left:
        leader, rest = left[0], []
        for number in left:
            gap = estimate(means[leader] - means[number], draws[:, leader] - draws[:, number], strata)
            if gap.low is not None and gap.low > 0:
                rest.append(number)
            else:
                given[number] = place
        left, place = rest, place + len(left) - len(rest)
    return given
