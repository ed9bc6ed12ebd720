"""Points of a curve: a footprint, and the score there over the full cache's on the very same turns, with its interval.

The interval is a Bayesian bootstrap (Rubin, 1981) of whole samples, drawn with both sides, since the turns of a sample share
its context and are not independent.  Two ghosts stand beside the samples, one that loses everything and one that keeps
everything, each with the weight of half an answer.  With yes/no scores and one turn a sample that is Jeffreys' interval
(Brown, Cai and DasGupta, 2001).  A plain bootstrap redraws only what it saw: where the truth is 90 % and ten samples came out
right, it says 100 ± 0, and of its "95 %" intervals 26 (3 samples) to 88 (20 samples) of 100 hold the truth. These do in 92 to
98, unless the turns of a sample are far more alike than is assumed here (docs/results/coverage.md).

Several tasks are one category as in arXiv 2506.17121 §2.1: means of the tasks' means, tasks weighing alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, nan
from typing import Protocol

import numpy as np

from kvledger.critical import AXES

REDRAWS = 2000
ALIKE = 0.25  # assumed correlation of the turns of a sample: it sets what one answer weighs as a ghost
_SEED = 20250617
_TAILS = (2.5, 97.5, 0.25, 99.75)


class Answered(Protocol):
    """What is asked of a Record."""

    @property
    def mode(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def turn(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def footprint(self) -> float: ...
    @property
    def byte_footprint(self) -> float: ...
    @property
    def peak(self) -> float: ...
    @property
    def stored_bytes(self) -> int: ...
    @property
    def full_bytes(self) -> int: ...


@dataclass(frozen=True)
class Paired:
    """Sums over the turns of one sample that both answered: the method's scores, the full cache's, how many turns."""

    ours: float
    full: float
    turns: int


@dataclass(frozen=True)
class Ratio:
    """A method's score over the full cache's, with its 95 % interval, and a 99.5 % one (`least`, `most`) for decisions that
    are taken more than once."""

    value: float
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Point:
    """One budget of one method. `footprint`: on whatever axis; `ratio` is None where the full cache scores nothing, so that
    there is nothing to divide by. `samples`: of the task that has fewest. `left_out`: turns without a finite score."""

    footprint: float
    ratio: Ratio | None
    score: float
    full: float
    samples: int
    left_out: int = 0


def pair(ours: Iterable[Answered], full: Iterable[Answered]) -> tuple[list[Paired], int]:
    """Both sides of each sample, in the samples' order, and how many turns were left out for want of a finite score."""
    theirs = {(r.seed, r.sample, r.turn): r.score for r in full}
    sums: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    odd = 0
    for r in ours:
        other = theirs.get((r.seed, r.sample, r.turn))
        if other is None:
            continue
        if isfinite(r.score) and isfinite(other):
            sums[r.seed, r.sample].append((r.score, other))
        else:
            odd += 1
    return [
        Paired(sum(a for a, _ in both), sum(b for _, b in both), len(both)) for _, both in sorted(sums.items())
    ], odd


def score_ratio(tasks: Sequence[Sequence[Paired]]) -> Ratio | None:
    """The ratio of the tasks' mean scores, each task with at least one sample. None if the full cache scores nothing."""
    means = [[sum(p.ours for p in task), sum(p.full for p in task), sum(p.turns for p in task)] for task in tasks]
    full = sum(theirs / turns for _, theirs, turns in means)
    if full <= 0:
        return None
    draws = np.sum([_redraws(task, number) for number, task in enumerate(tasks)], axis=0)
    low, high, least, most = np.percentile(draws[0] / draws[1], _TAILS)
    value = float(sum(mine / turns for mine, _, turns in means) / full)
    return Ratio(value, *(float(f(value, end)) for f, end in ((min, low), (max, high), (min, least), (max, most))))


def _redraws(samples: Sequence[Paired], stream: int) -> np.ndarray:
    """[2, REDRAWS]: mean scores of the method and of the full cache over redrawn samples, ghosts among them."""
    table = np.array([(p.ours, p.full, p.turns) for p in samples], dtype=float)
    turns = table[:, 2].mean()
    whole = table[:, 1].sum() / table[:, 2].sum() * turns
    table = np.vstack([table, (0.0, whole, turns), (whole, whole, turns)])
    ours, full, count = (_weights(len(samples), ghost_weight(turns), stream) @ table).T
    return np.stack([ours / count, full / count])


def ghost_weight(turns: float) -> float:
    """Of one answer, in samples of `turns` turns: the more alike the turns of a sample are, the more an answer weighs."""
    return float((1 + (turns - 1) * ALIKE) / turns)


@lru_cache(maxsize=256)
def _weights(count: int, ghost: float, stream: int) -> np.ndarray:
    """[REDRAWS, count + 2]: Dirichlet weights but for their sum, which cancels. Methods share their redraws, tasks do not."""
    rng = np.random.default_rng((_SEED, stream))
    ghosts = rng.gamma(0.5, size=(REDRAWS, 2)) * ghost
    return np.hstack([rng.gamma(1.0, size=(REDRAWS, count)), ghosts])


def point(parts: Sequence[tuple[Sequence[Answered], Sequence[Answered]]], axis: str = "entries") -> Point | None:
    """The point of (the method's records, the full cache's) of each task. None where a task has no turn in common with finite
    scores, or no finite footprint."""
    paired = [pair(ours, full) for ours, full in parts]
    tasks = [samples for samples, _ in paired]
    if not tasks or not all(tasks):
        return None
    footprint = sum(_footprint(ours, axis) for ours, _ in parts) / len(parts)
    if not isfinite(footprint):
        return None
    return Point(
        footprint=footprint,
        ratio=score_ratio(tasks),
        score=sum(sum(p.ours for p in task) / sum(p.turns for p in task) for task in tasks) / len(tasks),
        full=sum(sum(p.full for p in task) / sum(p.turns for p in task) for task in tasks) / len(tasks),
        samples=min(map(len, tasks)),
        left_out=sum(odd for _, odd in paired),
    )


def _footprint(records: Sequence[Answered], axis: str) -> float:
    """Mean over whole requests: in multi-turn a sample is one, and its last turn tells its whole life."""
    last: dict[tuple[int, ...], Answered] = {}
    for r in sorted(records, key=lambda r: r.turn):
        last[(r.seed, r.sample) if r.mode == "multi-turn" else (r.seed, r.sample, r.turn)] = r
    values = [value for r in last.values() if isfinite(value := _on_axis(r, axis))]
    return sum(values) / len(values) if values else nan


def _on_axis(r: Answered, axis: str) -> float:
    """A fraction of the full cache's. ValueError for an axis that is none of `AXES`."""
    if axis not in AXES:
        raise ValueError(f"axis={axis!r} is not one of {', '.join(AXES)}")
    if axis == "stored":
        return r.stored_bytes / r.full_bytes if r.full_bytes else nan
    return {"entries": r.footprint, "bytes": r.byte_footprint, "peak": r.peak}[axis]
