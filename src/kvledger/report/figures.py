"""Score against memory, and score by turn, as inline SVG panels.  (no torch)"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, in_order, keys_of, varying
from .palette import Style
from .pool import ALL
from .svg import Frame, Scale, put
from .tables import Memory, Row, Setting, baseline_setting

_LABEL_ADVANCE = 5.7  # mean width of a character of a direct label
_LABEL_GAP = 12.5
_FRAME = Frame()
_DODGE, _DODGE_ALL = 2.6, 26.0  # pixels between two neighbours, and between the first and the last of many
_FAR, _CROWDED = 1.25, 0.85  # of the full cache's memory
_MOST_LABELS = 14  # more than these do not fit beside a panel; the legend has them all
_MOST_TOLD = 12  # points that a description reads out
_MOST_PANELS = 40  # beyond, tasks are drawn over one measure alone; all of them together over each
Numbers = Mapping[tuple[Setting, str], str]


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


def numbers(rows: Iterable[Row]) -> Numbers:
    """What a mark calls its row, so that a pointer on it is told the row's figures."""
    return {(row.setting, row.recipe): str(number) for number, row in enumerate(rows)}


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


def front(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """Rows that nothing beats on both sides, from the smallest memory to the largest."""
    best, kept = -1.0, []
    for row in sorted(rows, key=lambda row: (measure.of(row.memory), -row.score.mean)):
        if row.score.mean > best:
            best = row.score.mean
            kept.append(row)
    return kept


def first_measure(rows: Sequence[Row]) -> Measure:
    """The entry footprint; but what is stored, where most recipes read everything before they drop anything, so that all of
    them stand in one corner."""
    held = [row.memory.footprint for row in rows if not row.full]
    crowded = sum(value > _CROWDED for value in held) > len(held) / 2
    return next(m for m in MEASURES if m.field == ("stored" if crowded else "footprint"))


def pareto(rows: Sequence[Row], styles: Mapping[str, Style], known: Numbers) -> list[Panel]:
    """Score against memory: a panel for each setting and measure."""
    made, names = [], varying(row.setting for row in rows)
    reach = {measure: _reach([measure.of(row.memory) for row in rows if not row.full]) for measure in MEASURES}
    found, first = groups(rows), first_measure(rows)
    many = len(found) * len(MEASURES) > _MOST_PANELS
    for number, group in enumerate(found):
        for measure, (low, high) in reach.items():
            if many and group.setting.task != ALL and measure != first:
                continue
            title, name = caption(group.setting, names), f"p{number}-{measure.field}"
            x = Scale(low, high, _FRAME.left, _FRAME.x1)
            panel = _pareto_panel(group, measure, x, styles, known, name, title)
            made.append(Panel(keys_of(group.setting, measure=measure.name), title, panel))
    return made


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """The axis of all panels of a measure: from nothing to the full cache, but later where nobody comes near nothing. The few
    that hold far more than the full cache (a second reading of the context) stand at its end, with their number."""
    if not values:
        return 0.0, 1.0
    near = [value for value in values if value <= _FAR]
    top = max(near, default=1.0) if len(near) > 0.75 * len(values) else max(values)
    return max(0.0, (min(values) - 0.3) // 0.25 * 0.25), max(1.0, top)


def _pareto_panel(
    group: Group, measure: Measure, x: Scale, styles: Mapping[str, Style], known: Numbers, name: str, title: str
) -> str:
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
        _series(root, points, places, y, styles[line], {row.recipe for row in best}, known)
    _far_labels(root, frame, group.rows, measure, x, y, styles)
    _left_labels(root, frame, named, places, y, styles)
    return svg.text_of(root)


def _far_labels(
    root: ET.Element,
    frame: Frame,
    rows: Sequence[Row],
    measure: Measure,
    x: Scale,
    y: Scale,
    styles: Mapping[str, Style],
) -> None:
    """What the points at the end of the axis really hold, each line's beside its lowest point."""
    far = lines([row for row in rows if measure.of(row.memory) > x.high + 1e-9])
    wanted = [max(y(row.score.mean) for row in points) for points in far.values()]
    placed = svg.spread(wanted, _LABEL_GAP, frame.top + 20, frame.y1 - 8)
    for (name, points), height in zip(far.items(), placed, strict=True):
        held = [measure.of(row.memory) * 100 for row in points]
        span = f"{min(held):.0f}" + (f"–{max(held):.0f}" if max(held) - min(held) >= 1 else "")
        words, colour = f"{short(name)} {span} % →", f"--c:{styles[name].css}"
        put(
            root,
            "text",
            words,
            class_="label halo",
            x=frame.x1 - 9,
            y=height + 3.8,
            text_anchor="end",
            data_line=name,
            style=colour,
        )


def dodged(rows: Sequence[Row], measure: Measure, x: Scale) -> dict[str, float]:
    """recipe -> pixels. Recipes of one keep and schedule hold exactly the same: side by side their whiskers can be told
    apart, a few pixels off."""
    together: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.line):
        together[round(x(min(measure.of(row.memory), x.high)))].append(row)
    return {
        row.recipe: x(min(measure.of(row.memory), x.high)) + (place - (len(peers) - 1) / 2) * _step(len(peers))
        for peers in together.values()
        for place, row in enumerate(peers)
    }


def _step(peers: int) -> float:
    return min(_DODGE, _DODGE_ALL / max(1, peers - 1))


def _tops(group: Group) -> list[float]:
    everything = [*group.rows, *([group.full] if group.full else [])]
    return [row.score.mean for row in everything] + [min(1.0, row.whiskers[1]) for row in everything if row.whiskers]


def _pareto_words(group: Group, measure: Measure) -> str:
    best = front(group.rows, measure)
    points = [f"{r.recipe}: score {units.points(r.score.mean)} at {units.percent(measure.of(r.memory))}" for r in best]
    told = points[:_MOST_TOLD] + ([f"full cache: {units.points(group.full.score.mean)}"] if group.full else [])
    return f"{units.plural(len(group.rows), 'point')}. Nothing beats " + "; ".join(told) + "."


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
    root: ET.Element,
    points: Sequence[Row],
    places: Mapping[str, float],
    y: Scale,
    style: Style,
    best: set[str],
    known: Numbers,
) -> None:
    group = put(root, "g", class_="series", data_line=points[0].line, style=f"--c:{style.css}")
    spots = [(places[row.recipe], y(row.score.mean)) for row in points]
    if len(spots) > 1:
        put(group, "path", class_="line", d=svg.path(spots))
    whiskers = [(places[r.recipe], y(max(0, r.whiskers[0])), y(r.whiskers[1])) for r in points if r.whiskers]
    if whiskers:
        put(group, "path", class_="whisker", d=svg.uprights(whiskers))
    for kind, chosen in (("mark off", False), ("mark on", True)):
        marks = [(row, *spot) for row, spot in zip(points, spots, strict=True) if (row.recipe in best) == chosen]
        inner = put(group, "g", class_=kind) if marks else group
        for row, px, py in marks:
            svg.marker(inner, style.shape, px, py, data_r=known[row.setting, row.recipe])


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
