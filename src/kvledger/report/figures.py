"""Score against memory, and score by turn, as inline SVG panels.  (no torch)"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, in_order, keys_of, varying
from .palette import Style
from .svg import Frame, Scale, put
from .tables import Memory, Row, Setting, baseline_setting

_LABEL_ADVANCE = 5.7  # mean width of a character of a direct label
_LABEL_GAP = 12.5
_FRAME = Frame()
_DODGE = 2.6
_MOST_LABELS = 14  # more than these do not fit beside a panel; the legend has them all


class Measure(NamedTuple):
    """A choice for the horizontal axis of the Pareto plot."""

    name: str
    axis: str
    field: str

    def of(self, memory: Memory) -> float:
        return float(getattr(memory, self.field))


MEASURES = (
    Measure("entry footprint", "entry footprint, % of the full cache", "footprint"),
    Measure("byte footprint", "byte footprint, % of the full cache", "byte_footprint"),
    Measure("peak", "peak entries, % of the full cache", "peak"),
    Measure("stored bytes", "bytes stored when the question comes, % of the full cache", "stored"),
    Measure("bytes read a step", "bytes read by a decode step, % of the full cache", "read"),
)


@dataclass(frozen=True)
class Group:
    """The rows of one panel, with the full cache's row where there is one (perhaps of another visibility or chunk)."""

    setting: Setting
    full: Row | None
    rows: tuple[Row, ...]


def groups(rows: Sequence[Row]) -> list[Group]:
    """One group a setting in which something other than the full cache was run."""
    full = {row.setting: row for row in rows if row.full}
    found = []
    for setting in in_order(row.setting for row in rows if not row.full):
        source = baseline_setting(setting, full)
        inside = tuple(row for row in rows if row.setting == setting and not row.full)
        found.append(Group(setting, None if source is None else full[source], inside))
    return found


def lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    named: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.line, row.keep)):
        named[row.line].append(row)
    return dict(named)


def score_scale(tops: Sequence[float], frame: Frame) -> tuple[Scale, list[float]]:
    """From zero to the next tick above everything: a score's height on the page is its worth."""
    top = max([0.05, *tops])
    step = svg.nice_step(top, 5, (1, 2, 2.5, 5, 10))
    high = min(1.0, step * -(-round(top / step, 9) // 1)) if top <= 1 else top
    scale = Scale(0, high, frame.y1, frame.top)
    return scale, svg.ticks(0, high, 5)


def tip(row: Row) -> str:
    """What a pointer on a point is told: one fact a line."""
    facts = [units.clean(row.recipe), f"score {units.points(row.score.mean)}"]
    if row.whiskers:
        facts[1] += f"  [{units.points(row.whiskers[0])}, {units.points(row.whiskers[1])}]"
    if row.against is not None and not row.full:
        facts.append(f"against full {units.points(row.against.difference.mean, signed=True)}")
    facts.append(f"entry footprint {units.percent(row.memory.footprint)}")
    facts.append(f"byte footprint {units.percent(row.memory.byte_footprint)}")
    facts.append(f"peak {units.percent(row.memory.peak)} · stored {units.percent(row.memory.stored)}")
    facts.append(f"{units.plural(row.samples, 'sample')}, {units.plural(row.turns, 'turn')}")
    return "\n".join(facts)


def front(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """Rows that nothing beats on both sides, from the smallest memory to the largest."""
    best, kept = -1.0, []
    for row in sorted(rows, key=lambda row: (measure.of(row.memory), -row.score.mean)):
        if row.score.mean > best:
            best = row.score.mean
            kept.append(row)
    return kept


def pareto(rows: Sequence[Row], styles: Mapping[str, Style]) -> list[Panel]:
    """Score against memory: a panel for each setting and measure."""
    made, names = [], varying(row.setting for row in rows)
    reach = {measure: _reach([measure.of(row.memory) for row in rows if not row.full]) for measure in MEASURES}
    for number, group in enumerate(groups(rows)):
        for measure, (low, high) in reach.items():
            title, name = caption(group.setting, names), f"p{number}-{measure.field}"
            x = Scale(low, high, _FRAME.left, _FRAME.x1)
            panel = _pareto_panel(group, measure, x, styles, name, title)
            made.append(Panel(keys_of(group.setting, measure=measure.name), title, panel))
    return made


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """The axis of all panels of a measure: from nothing to the full cache, but later where nobody comes near nothing."""
    if not values:
        return 0.0, 1.0
    return max(0.0, (min(values) - 0.3) // 0.25 * 0.25), max(1.0, *values)


def _pareto_panel(group: Group, measure: Measure, x: Scale, styles: Mapping[str, Style], name: str, title: str) -> str:
    frame = _FRAME
    named = lines(group.rows)
    root = svg.panel(frame, name, f"Score against {measure.name}: {title}", _pareto_words(group, measure))
    y, marks = score_scale(_tops(group), frame)
    if measure.field == "footprint":
        _floor(root, frame, x, min(row.memory.floor for row in group.rows))
    svg.y_axis(root, frame, y, marks, lambda mark: f"{mark * 100:g}")
    svg.x_axis(root, frame, x, svg.ticks(x.low, x.high, 5 if x.low else 4), lambda mark: f"{mark * 100:g}")
    svg.x_name(root, frame, measure.axis)
    svg.y_name(root, frame, "score, 0–100")
    if group.full is not None:
        _reference(root, frame, y, group.full)
    best = front(group.rows, measure)
    places = dodged(group.rows, measure, x)
    spots = [(places[row.recipe], y(row.score.mean)) for row in best]
    if len(spots) > 1:
        put(root, "path", class_="front", d=svg.path(spots))
    for line, points in named.items():
        _series(root, points, places, y, styles[line], {row.recipe for row in best})
    _left_labels(root, frame, named, places, y, styles)
    return svg.text_of(root)


def dodged(rows: Sequence[Row], measure: Measure, x: Scale) -> dict[str, float]:
    """recipe -> pixels. Recipes of one keep and schedule hold exactly the same: side by side their whiskers can be told
    apart, a few pixels off."""
    together: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.line):
        together[round(x(measure.of(row.memory)))].append(row)
    return {
        row.recipe: x(measure.of(row.memory)) + (place - (len(peers) - 1) / 2) * _DODGE
        for peers in together.values()
        for place, row in enumerate(peers)
    }


def _tops(group: Group) -> list[float]:
    everything = [*group.rows, *([group.full] if group.full else [])]
    return [row.score.mean for row in everything] + [min(1.0, row.whiskers[1]) for row in everything if row.whiskers]


def _pareto_words(group: Group, measure: Measure) -> str:
    points = [
        f"{row.recipe}: score {units.points(row.score.mean)} at {units.percent(measure.of(row.memory))}"
        for row in group.rows
    ]
    return "; ".join([*points, *([f"full cache: {units.points(group.full.score.mean)}"] if group.full else [])]) + "."


def _floor(root: ET.Element, frame: Frame, x: Scale, floor: float) -> None:
    if floor < x.low + 0.01:
        return
    edge = min(x(floor), frame.x1)
    put(root, "rect", class_="floor", x=frame.left, y=frame.top, width=edge - frame.left, height=frame.y1 - frame.top)
    beside, anchor = (edge + 3, "start") if edge < frame.x1 - 30 else (edge - 3, "end")
    put(root, "text", "floor", class_="note", x=beside, y=frame.y1 - 5, text_anchor=anchor)


def _reference(root: ET.Element, frame: Frame, y: Scale, full: Row) -> None:
    """The full cache's score, and nine tenths of it: where a line crosses that, its critical footprint lies."""
    for share, kind, words, shift in (
        (1.0, "full", f"full cache {units.points(full.score.mean)}", -3.5),
        (0.9, "nine", "90 %", 10),
    ):
        height = y(share * full.score.mean)
        put(root, "line", class_=kind, x1=frame.left, x2=frame.x1, y1=height, y2=height)
        put(root, "text", words, class_="note halo", x=frame.x1, y=height + shift, text_anchor="end")
        if not full.score.mean:
            return  # nothing has no tenths


def _series(
    root: ET.Element, points: Sequence[Row], places: Mapping[str, float], y: Scale, style: Style, best: set[str]
) -> None:
    group = put(root, "g", class_="series", data_line=points[0].line, style=f"--c:{style.css}")
    spots = [(places[row.recipe], y(row.score.mean)) for row in points]
    if len(spots) > 1:
        put(group, "path", class_="line", d=svg.path(spots))
    for row, (px, _) in zip(points, spots, strict=True):
        if row.whiskers:
            put(group, "line", class_="whisker", x1=px, x2=px, y1=y(max(0, row.whiskers[0])), y2=y(row.whiskers[1]))
    for row, (px, py) in zip(points, spots, strict=True):
        kind = "mark on" if row.recipe in best else "mark off"
        svg.marker(group, style.shape, px, py, class_=kind, data_tip=tip(row))


def _left_labels(
    root: ET.Element,
    frame: Frame,
    named: Mapping[str, Sequence[Row]],
    places: Mapping[str, float],
    y: Scale,
    styles: Mapping[str, Style],
) -> None:
    """Names in the empty stretch left of the smallest footprint, each tied to the start of its line."""
    starts = {name: min(points, key=lambda row: places[row.recipe]) for name, points in named.items()}
    column = min(places[row.recipe] for row in starts.values()) - 14
    room = int((column - frame.left) / _LABEL_ADVANCE)
    # The legend has all names; half a name here could be read as another method's.
    starts = {name: row for name, row in starts.items() if len(short(name)) <= room}
    if len(starts) > _MOST_LABELS:
        return
    heights = [y(row.score.mean) for row in starts.values()]
    placed = svg.spread(heights, _LABEL_GAP, frame.top + 6, frame.y1 - 20)
    for (name, row), height, place in zip(starts.items(), heights, placed, strict=True):
        label(root, name, column, place, room, styles[name], "end")
        end = places[row.recipe] - 5.5
        put(root, "path", class_="leader", d=svg.path([(column + 2, place), (column + 5, place), (end, height)]))


def short(name: str) -> str:
    """Options by their values alone: `snapkv(when='chunk') + kivi(bits=4)` -> `snapkv chunk + kivi 4`."""
    return re.sub(r"\(([^()]*)\)", lambda options: re.sub(r",?\s*\w+=", " ", options[1]).replace("'", ""), name)


def label(root: ET.Element, name: str, x: float, y: float, room: int, style: Style, anchor: str) -> None:
    words = short(name)
    words = words if len(words) <= room else words[: room - 1] + "…"
    colour = f"--c:{style.css}"
    put(root, "text", words, class_="label halo", x=x, y=y + 3.8, text_anchor=anchor, data_line=name, style=colour)
