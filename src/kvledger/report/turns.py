"""Score by turn, as inline SVG panels.  (no torch)

Whoever compresses with the first question in sight answers that one well; the turns after it show what was thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, keys_of, varying
from .figures import Group, Numbers, groups, label, score_scale
from .palette import Style
from .pool import ALL
from .svg import Frame, Scale, put
from .tables import Row, TurnScore

_ROOM = 19  # characters of the labels to the right of a panel
_MOST_LABELS = 15
_MOST_WHISKERS = 4  # lines; with more, intervals are for the pointer alone
_MOST_TOLD = 12
_MOST_PANELS = 40


def by_turn(rows: Sequence[Row], styles: Mapping[str, Style], known: Numbers, usual: str = "") -> list[Panel]:
    """A panel for each setting and keep; none where there is only one turn. Where they would be too many, single tasks are
    drawn at the `usual` keep alone."""
    names = varying(row.setting for row in rows)
    found = [part for group in groups(rows) for part in _by_keep(group)]
    if len(found) > _MOST_PANELS and usual:
        found = [part for part in found if part.setting.task == ALL or units.keep(part.rows[0].keep) == usual]
    made = []
    for number, part in enumerate(found):
        keep, title = units.keep(part.rows[0].keep), caption(part.setting, names)
        made.append(
            Panel(keys_of(part.setting, keep=keep), title, _panel(part, keep, styles, known, f"t{number}", title))
        )
    return made


def _by_keep(group: Group) -> list[Group]:
    parts = [tuple(row for row in group.rows if row.keep == keep) for keep in sorted({row.keep for row in group.rows})]
    return [Group(group.setting, group.full, rows) for rows in parts if max(len(row.by_turn) for row in rows) > 1]


def _panel(group: Group, keep: str, styles: Mapping[str, Style], known: Numbers, name: str, title: str) -> str:
    frame = Frame(right=122)
    root = svg.panel(frame, name, f"Score by turn at keep {keep}: {title}", _words(group))
    everything = [*group.rows, *([group.full] if group.full else [])]
    last = max(point.turn for row in everything for point in row.by_turn)
    x = Scale(1, max(2, last), frame.left + 12, frame.x1 - 8)
    y, marks = score_scale([point.score for row in everything for point in row.by_turn], frame)
    svg.y_axis(root, frame, y, marks, lambda mark: f"{mark * 100:g}")
    svg.x_axis(root, frame, x, svg.ticks(1, last, min(8, last - 1)), lambda mark: f"{mark:g}")
    svg.x_name(root, frame, "turn" if group.setting.mode == "multi-turn" else "request")
    svg.y_name(root, frame, "score, 0–100")
    few = len(everything) <= _MOST_WHISKERS
    if group.full is not None:
        _line(root, group.full, x, y, None, known, few)
    for row in group.rows:
        _line(root, row, x, y, styles[row.line], known, few)
    _labels(root, frame, everything, y, styles)
    return svg.text_of(root)


def _words(group: Group) -> str:
    everything = [*([group.full] if group.full else []), *sorted(group.rows, key=lambda row: -row.score.mean)]
    told = [f"{r.recipe}: {', '.join(units.points(p.score) for p in r.by_turn)}" for r in everything[:_MOST_TOLD]]
    more = len(everything) - len(told)
    return "; ".join(told) + (f"; and {more} more, lower on average." if more else ".")


def _line(root: ET.Element, row: Row, x: Scale, y: Scale, style: Style | None, known: Numbers, whiskers: bool) -> None:
    spots = [(x(point.turn), y(point.score)) for point in row.by_turn]
    name = known[row.setting, row.recipe]
    if style is None:
        group = put(root, "g", class_="series reference", data_r=name, style="--c:var(--ink)")
    else:
        group = put(root, "g", class_="series", data_r=name, data_line=row.line, style=f"--c:{style.css}")
    put(group, "path", class_="line", d=svg.path(spots))
    spans = [(x(p.turn), y(p.low), y(p.high)) for p in row.by_turn if p.low is not None and p.high is not None]
    if whiskers and spans:
        put(group, "path", class_="whisker", d=svg.uprights(spans))
    marks = put(group, "g", class_="mark on")
    for point, (px, py) in zip(row.by_turn, spots, strict=True):
        svg.marker(marks, style.shape if style else "circle", px, py, 3.4, data_tip=_tip(point, whiskers))


def _tip(point: TurnScore, whole: bool) -> str:
    """Short where a panel has many marks: a page has thousands."""
    words = f"turn {point.turn}: {units.points(point.score)}"
    if not whole:
        return words
    span = f" [{units.points(point.low)}, {units.points(point.high)}]" if point.low is not None else ""
    return f"{words}{span}, {units.plural(point.count, 'answer')}"


def _labels(root: ET.Element, frame: Frame, rows: Sequence[Row], y: Scale, styles: Mapping[str, Style]) -> None:
    """Names at the ends of the lines."""
    if len(rows) > _MOST_LABELS:
        return
    heights = [y(row.by_turn[-1].score) for row in rows]
    placed = svg.spread(heights, 12.5, frame.top + 2, frame.y1 - 2)
    for row, height, place in zip(rows, heights, placed, strict=True):
        start = frame.x1 - 2
        put(root, "path", class_="leader", d=svg.path([(start, height), (start + 4, place), (start + 6, place)]))
        if row.full:
            put(root, "text", "full cache", class_="note halo", x=start + 9, y=place + 3.8)
        else:
            label(root, row.line, start + 9, place, _ROOM, styles[row.line], "start")
