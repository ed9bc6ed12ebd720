"""Which budget to measure next, and on how many samples: bisection, with sequential tests on paired samples.

1. *Locate.* Halve the ladder of budgets until two neighbours are found, the lower below F, the higher at F or above, each on
   few samples.
2. *Settle.* Double the samples of these two until each is clearly below or above, or has all samples. If the two change
   sides, go on locating.
3. *Tighten.* Ask further out, for the budgets from which on a method is clearly above, and below which it is clearly under.

It ends as soon as the interval of the critical footprint is as narrow as asked, when the budget is spent, or when nothing is
open.  "Clearly" is 99.5 % while samples can still be added (an early look must not count as much as the last one: Haybittle,
1971, and Peto, 1976) and 95 % with all of them.  Each decision follows from what was measured, so that a search which was
killed takes the same course again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvledger.critical.crossing import crossing
from kvledger.critical.points import Point

UNDEFINED = "the full cache scores nothing"
NARROW = "as narrow as asked"
SPENT = "budget spent"
CLOSED = "nothing left to ask"


class Step(NamedTuple):
    """Measure the budget at `place` of the ladder on the first `samples` samples."""

    place: int
    samples: int


@dataclass(frozen=True)
class Aim:
    """target: F. rule: of `critical.crossing`. width: of the interval, as a fraction of the full cache's footprint.
    first: samples of a first look. samples: the most for one budget. budget: samples over all budgets of one method on one
    task (0: no limit)."""

    target: float = 0.9
    width: float = 0.1
    first: int = 4
    samples: int = 20
    budget: int = 0
    rule: str = "lowest"

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError(f"target={self.target} is outside (0, 1): it is the fraction of the full score to keep")
        if not 0 < self.width <= 1:
            raise ValueError(f"width={self.width} is outside (0, 1]: it is a fraction of the full cache's footprint")
        if not 1 <= self.first <= self.samples:
            raise ValueError(f"first={self.first} must be at least 1 and at most samples={self.samples}")
        if self.budget < 0:
            raise ValueError(f"budget={self.budget} is negative; 0 sets no limit")


Measured = Mapping[int, Point]  # place on the ladder -> what was measured there


def next_step(measured: Measured, size: int, aim: Aim) -> Step | str:
    """What to measure next on a ladder of `size` budgets, from the smallest to the largest; or why the search is over."""
    blind = [i for i, p in measured.items() if p.ratio is None]
    if blind:
        short = [i for i in blind if measured[i].samples < aim.samples]
        return _afford(Step(short[0], aim.samples), measured, aim) if short else UNDEFINED
    below, above = bracket(measured, size, aim)
    if above - below > 1:
        return _afford(Step((below + above) // 2, aim.first), measured, aim)
    found = crossing(list(measured.values()), aim.target, aim.rule)
    assert found is not None
    if found.width <= aim.width:
        return NARROW
    step = _settle(measured, (below, above), aim) or _tighten(measured, size, below, above, aim)
    return CLOSED if step is None else _afford(step, measured, aim)


def bracket(measured: Measured, size: int, aim: Aim) -> tuple[int, int]:
    """The neighbours, among the places measured, between which the curve crosses: -1 and `size` where it does not."""
    said = {i: p.ratio.value >= aim.target for i, p in measured.items() if p.ratio is not None}
    if aim.rule == "lowest":
        above = min((i for i, good in said.items() if good), default=size)
        return max((i for i in said if i < above), default=-1), above
    below = max((i for i, good in said.items() if not good), default=-1)
    return below, min((i for i in said if i > below), default=size)


def verdict(point: Point, aim: Aim) -> int | None:
    """1: clearly at the target or above, -1: clearly below, 0: neither, with all samples; None: more samples may tell."""
    assert point.ratio is not None
    last = point.samples >= aim.samples
    if (point.ratio.low if last else point.ratio.least) >= aim.target:
        return 1
    if (point.ratio.high if last else point.ratio.most) < aim.target:
        return -1
    return 0 if last else None


def _afford(step: Step, measured: Measured, aim: Aim) -> Step | str:
    spent = sum(p.samples for p in measured.values())
    more = step.samples - (measured[step.place].samples if step.place in measured else 0)
    return SPENT if aim.budget and spent + more > aim.budget else step


def _more(place: int, measured: Measured, aim: Aim) -> Step:
    samples = 2 * measured[place].samples if place in measured else aim.first
    return Step(place, min(samples, aim.samples))


def _settle(measured: Measured, places: tuple[int, ...], aim: Aim) -> Step | None:
    """More samples for the one of these places that is open and has fewest."""
    still = [i for i in places if i in measured and verdict(measured[i], aim) is None]
    return _more(min(still, key=lambda i: measured[i].samples), measured, aim) if still else None


def _tighten(measured: Measured, size: int, below: int, above: int, aim: Aim) -> Step | None:
    """On the side where the interval is wider: the budget that is expected to be just clear of F."""
    said = {i: verdict(p, aim) for i, p in measured.items()}
    top = min((i for i, v in said.items() if v == 1 and i >= above), default=size)
    under_top = max((i for i, v in said.items() if i < top and v in (0, -1)), default=below)
    floor = max((i for i, v in said.items() if v == -1 and i <= below), default=-1)
    over_floor = min((i for i, v in said.items() if i > floor and v in (0, 1)), default=above)
    found = crossing(list(measured.values()), aim.target, aim.rule)
    assert found is not None
    sides = [(found.high.above - found.value.above, range(under_top + 1, top), 1),
             (found.value.below - found.low.below, range(over_floor - 1, floor, -1), -1)]  # fmt: skip
    open_sides = [side for side in sides if side[1]]
    if not open_sides:
        return None
    _, places, sign = max(open_sides, key=lambda side: side[0])
    return _more(_just_clear(measured, places, sign, size, aim), measured, aim)


def _just_clear(measured: Measured, places: range, sign: int, size: int, aim: Aim) -> int:
    """The first of `places` (from F outwards) whose ratio, interpolated, is as far from F as an interval of all samples is
    wide to one side; the last one if none is."""
    ratios = {i: p.ratio for i, p in measured.items() if p.ratio is not None}
    known = {-1: 0.0, size: 1.0} | {i: ratio.value for i, ratio in ratios.items()}
    near = min(ratios, key=lambda i: abs(ratios[i].value - aim.target))
    half = (ratios[near].high - ratios[near].low) / 2 * (measured[near].samples / aim.samples) ** 0.5
    at = sorted(known)
    expected = np.interp(places, at, [known[i] for i in at])
    return next((i for i, ratio in zip(places, expected) if sign * (ratio - aim.target) >= half), places[-1])
