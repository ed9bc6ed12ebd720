"""Where a curve of score ratio over footprint reaches F: the critical footprint, its interval, and what censors it.

The paper's curves are not monotone and it does not say which crossing it takes; its Table 2 agrees with the lowest one, with
linear interpolation between neighbours, whatever the curve does above.  Both readings are here, by name:

    lowest    the smallest footprint at which the curve reaches F (the paper's)
    lasting   the smallest footprint from which on the curve stays at F or above

The interval inverts those of the points: at the true critical footprint the true ratio is F, and a point's 95 % interval misses
it in 5 of 100 runs.  So all footprints whose interval holds F, interpolated between neighbours, hold the crossing with 95 %, if
the true curve rises.  (Redrawing the crossing itself does not: the lowest of several noisy crossings is too low, and redrawing
doubles that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvledger.critical import RULES
from kvledger.critical.points import Point

Side = Literal["=", "<", ">", "never"]


@dataclass(frozen=True)
class Bound:
    """A footprint, or what is known where the curve does not cross between its ends: `<` it lies below the smallest that was
    measured, `>` above the largest, `never`: the largest costs as much as the full cache and still is not enough."""

    value: float
    side: Side = "="

    def __str__(self) -> str:
        return "never" if self.side == "never" else f"{self.side.strip('=')}{100 * self.value:.0f}"

    @property
    def below(self) -> float:
        """The least that the footprint can be; 0 where it lies below everything that was measured."""
        return 0.0 if self.side == "<" else self.value

    @property
    def above(self) -> float:
        """The most that it can be; 1, the full cache, where no smaller one will do."""
        return max(1.0, self.value) if self.side in (">", "never") else self.value


@dataclass(frozen=True)
class Crossing:
    """A critical footprint by one rule, and the ends of its 95 % interval."""

    rule: str
    value: Bound
    low: Bound
    high: Bound

    @property
    def width(self) -> float:
        return self.high.above - self.low.below

    def holds(self, other: Bound) -> bool:
        """Whether the interval holds what `other` says: one of the footprints that it leaves open, if it is censored."""
        return self.low.below <= other.above and other.below <= self.high.above


def crossing(points: Sequence[Point], target: float, rule: str = "lowest") -> Crossing | None:
    """The critical footprint of points in any order; None where no ratio is defined. ValueError for a target outside (0, 1)
    and an unknown rule."""
    if not 0 < target < 1:
        raise ValueError(f"target={target} is outside (0, 1): it is the fraction of the full cache's score to keep")
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not one of {', '.join(RULES)}")
    curve = sorted((p for p in points if p.ratio is not None), key=lambda p: p.footprint)
    if not curve:
        return None
    x, bands = [p.footprint for p in curve], _bands(curve)
    find = lowest if rule == "lowest" else lasting
    value, low, high = (find(x, list(y), target) for y in zip(*bands))
    return Crossing(rule, value, high, low)


def _bands(curve: Sequence[Point]) -> list[tuple[float, float, float]]:
    """(ratio, its low end, its high end) of each point. One with fewer samples than others was left after a look at what they
    said, and a look that may be one of several counts less: there the interval is the 99.5 % one."""
    most = max(p.samples for p in curve)
    ratios = [(p.ratio, p.samples < most) for p in curve if p.ratio is not None]
    return [(r.value, *((r.least, r.most) if early else (r.low, r.high))) for r, early in ratios]


def lowest(x: Sequence[float], y: Sequence[float], target: float) -> Bound:
    """Where y first reaches the target, x ascending."""
    reached = next((i for i, value in enumerate(y) if value >= target), None)
    if reached is None:
        return Bound(x[-1], "never" if x[-1] >= 1 else ">")
    return Bound(x[0], "<") if reached == 0 else _between(x, y, reached - 1, target)


def lasting(x: Sequence[float], y: Sequence[float], target: float) -> Bound:
    """From where on y stays at the target or above, x ascending."""
    under = next((i for i in reversed(range(len(y))) if y[i] < target), None)
    if under is None:
        return Bound(x[0], "<")
    return Bound(x[-1], "never" if x[-1] >= 1 else ">") if under == len(y) - 1 else _between(x, y, under, target)


def _between(x: Sequence[float], y: Sequence[float], i: int, target: float) -> Bound:
    """Linear interpolation between the points i (below the target) and i + 1 (not below)."""
    return Bound(x[i] + (x[i + 1] - x[i]) * (target - y[i]) / (y[i + 1] - y[i]))
