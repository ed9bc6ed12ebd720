"""The memory of one request over its life, as inline SVG panels.  (no torch)

Reading a long context dwarfs the turns that follow, so the two have scales of their own, side by side, with a gap
between them: saw teeth of the chunks to the left, questions and answers to the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, keys_of, varying
from .figures import groups
from .palette import Style
from .svg import Frame, Scale, put
from .tables import Life, Row

Point = tuple[int, float, str]
_GAP = 10
_HEADROOM = 16  # for the names of the questions, above everything drawn
_TURN_SHARE = (0.34, 0.6)  # of the width, for the turns: never too narrow to see, never all
_MOST_BANDS = 40
_MOST_PANELS = 100


@dataclass(frozen=True)
class Axis:
    """Tokens to pixels: one scale up to the first question, another from it on."""

    cut: int
    reading: Scale
    turns: Scale | None

    def __call__(self, seen: float, in_turns: bool) -> float:
        return self.turns(seen) if in_turns and self.turns else self.reading(seen)


def lives(rows: Sequence[Row], styles: Mapping[str, Style], usual: str = "") -> tuple[list[Panel], str]:
    """A panel a row that has a curve; and, where all would be too many, what alone is drawn: the first task, then also the
    `usual` keep. (What is kept depends little on what is asked.)"""
    names = varying(row.setting for row in rows)
    made: list[Panel] = []
    drawn, only = _drawn([row for row in rows if row.life is not None], usual)
    for number, group in enumerate(groups(rows)):
        for place, row in enumerate(group.rows):
            if row.life is None or row not in drawn:
                continue
            where = caption(row.setting, names)
            keys = keys_of(row.setting, keep=units.keep(row.keep))
            title = " · ".join([units.clean(row.recipe), *([where] if names else [])])
            made.append(Panel(keys, title, _panel(row, row.life, styles[row.line], f"m{number}-{place}", where)))
    return made, only


def _drawn(rows: Sequence[Row], usual: str) -> tuple[list[Row], str]:
    tasks = list(dict.fromkeys(row.setting.task for row in rows))
    if sum(not row.full for row in rows) <= _MOST_PANELS:
        return list(rows), ""
    rows = [row for row in rows if row.setting.task == tasks[0]]
    if sum(not row.full for row in rows) <= _MOST_PANELS or not usual:
        return list(rows), tasks[0]
    return [row for row in rows if units.keep(row.keep) == usual], f"{tasks[0]} at keep {usual}"


def _panel(row: Row, life: Life, style: Style, name: str, where: str) -> str:
    frame = Frame(height=220, right=14)
    points = life.curve
    root = svg.panel(frame, name, f"Memory over one request: {row.recipe}, {where}", _words(row, life))
    axis = _axis(points, frame)
    top = max(max(seen, alive) for seen, alive, _ in points)
    y = Scale(0, top, frame.y1, frame.top + _HEADROOM)
    _bands(root, frame, axis, points)
    svg.y_axis(root, frame, y, svg.token_ticks(top), units.tokens)
    _ticks(root, frame, axis, points)
    svg.y_name(root, frame, "entries alive, mean of all heads")
    for kind, values in (("full", [(seen, float(seen), event) for seen, _, event in points]), ("alive", list(points))):
        _curve(root, frame, axis, y, values, kind, style)
    _marks(root, frame, axis, y, points, life, style)
    return svg.text_of(root)


def _words(row: Row, life: Life) -> str:
    seen, alive, _ = life.curve[-1]
    return (
        f"Sample {life.sample}: {units.tokens(alive)} of {units.tokens(seen)} entries alive after turn {life.turn}; "
        f"peak {units.percent(life.peak)} of the full cache."
    )


def _first_turn(points: Sequence[Point]) -> int:
    """Index of the first point of the turns; the number of points when there are none."""
    return next((number for number, (_, _, event) in enumerate(points) if event in ("ask", "decode")), len(points))


def _axis(points: Sequence[Point], frame: Frame) -> Axis:
    start = _first_turn(points)
    end = max(seen for seen, _, _ in points)
    cut = points[start - 1][0] if start else 0
    if start in (0, len(points)) or end <= cut:
        return Axis(end, Scale(0, end, frame.left, frame.x1), None)
    share = min(max((end - cut) / end, _TURN_SHARE[0]), _TURN_SHARE[1])
    middle = frame.x1 - share * (frame.x1 - frame.left)
    return Axis(cut, Scale(0, cut, frame.left, middle - _GAP / 2), Scale(cut, end, middle + _GAP / 2, frame.x1))


def _bands(root: ET.Element, frame: Frame, axis: Axis, points: Sequence[Point]) -> None:
    """Every other chunk is tinted, and every question; answers stay blank."""
    start, height, before = _first_turn(points), frame.y1 - frame.top, 0
    reads = [seen for seen, _, event in points[:start] if event == "read"]
    if 1 < len(reads) <= _MOST_BANDS:
        for number, seen in enumerate(reads):
            left, right = axis(before, False), axis(seen, False)
            if number % 2 == 0:
                put(root, "rect", class_="band", x=left, y=frame.top, width=right - left, height=height)
            before = seen
    before, asked = axis.cut, 0
    for seen, _, event in points[start:]:
        if event == "ask" and seen > before:
            asked += 1
            left, right = axis(before, True), axis(seen, True)
            put(root, "rect", class_="band ask", x=left, y=frame.top, width=right - left, height=height)
            put(root, "text", f"Q{asked}", class_="note", x=(left + right) / 2, y=frame.top + 10, text_anchor="middle")
        before = max(before, seen)


def _ticks(root: ET.Element, frame: Frame, axis: Axis, points: Sequence[Point]) -> None:
    """Tokens seen; after the cut, tokens since the context was read."""
    marks = svg.token_ticks(axis.cut, 3)
    svg.x_axis(root, frame, axis.reading, marks, units.tokens)
    middle = (axis.reading.start + axis.reading.end) / 2
    put(root, "text", "tokens read", class_="name", x=middle, y=frame.height - 6, text_anchor="middle")
    if axis.turns is None:
        return
    since = Scale(0, axis.turns.high - axis.cut, axis.turns.start, axis.turns.end)
    svg.x_axis(root, frame, since, svg.ticks(0, since.high, 3)[1:], lambda mark: f"+{mark:g}")
    middle = (axis.turns.start + axis.turns.end) / 2
    put(root, "text", "turns, own scale", class_="name", x=middle, y=frame.height - 6, text_anchor="middle")
    gap = axis.reading.end + _GAP / 2
    put(root, "rect", class_="gap", x=gap - 3, y=frame.top, width=6, height=frame.y1 - frame.top + 5)


def _parts(axis: Axis, points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """(pixels, entries) of the reading and of the turns. A curve that steps back (a fork) starts a part of its own."""
    start = _first_turn(points) if axis.turns else len(points)
    reading = [(axis(0, False), 0.0), *((axis(seen, False), alive) for seen, alive, _ in points[:start])]
    parts, before = [reading], axis.cut
    if axis.turns and start:
        parts.append([(axis(axis.cut, True), points[start - 1][1])])
    for seen, alive, _ in points[start:]:
        if seen < before:
            parts.append([])
        parts[-1].append((axis(max(seen, axis.cut), True), alive))
        before = seen
    return [part for part in parts if part]


def _curve(
    root: ET.Element, frame: Frame, axis: Axis, y: Scale, points: Sequence[Point], kind: str, style: Style
) -> None:
    group = put(root, "g", class_=f"life {kind}", style=f"--c:{style.css}")
    for part in _parts(axis, points):
        spots = svg.thin([(px, y(alive)) for px, alive in part])
        if kind == "alive":
            closed = [(spots[0][0], frame.y1), *spots, (spots[-1][0], frame.y1)]
            put(group, "path", class_="area", d=svg.path(closed) + "Z")
        put(group, "path", class_="line", d=svg.path(spots))


def _marks(
    root: ET.Element, frame: Frame, axis: Axis, y: Scale, points: Sequence[Point], life: Life, style: Style
) -> None:
    """The peak, and what is left at the end, both against the full cache."""
    top = max(range(len(points)), key=lambda number: points[number][1])
    px, py = axis(points[top][0], top >= _first_turn(points)), y(points[top][1])
    group = put(root, "g", style=f"--c:{style.css}")
    svg.marker(group, style.shape, px, py, 3.6, class_="mark off")
    words, anchor = f"peak {units.percent(life.peak, 0)}", "end"
    put(group, "text", words, class_="label halo", x=px + 4, y=py - 8, text_anchor=anchor)
    seen, alive, _ = points[-1]
    if frame.x1 - px > 60 and seen:
        words = f"at the end {units.percent(alive / seen, 0)}"
        put(group, "text", words, class_="label halo", x=frame.x1, y=y(alive) - 7, text_anchor=anchor)
