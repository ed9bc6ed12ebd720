"""Score by turn, as inline SVG panels.  (no torch)

Whoever compresses with the first question in sight answers that one well; the turns after it show what was thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, keys_of, varying
from .figures import Group, groups, label, score_scale
from .palette import Style
from .svg import Frame, Scale, put
from .tables import Row

_ROOM = 19  # characters of the labels to the right of a panel
_MOST_LABELS = 15


def by_turn(rows: Sequence[Row], styles: Mapping[str, Style]) -> list[Panel]:
    """A panel for each setting and keep; none where there is only one turn."""
    made, names = [], varying(row.setting for row in rows)
    for number, group in enumerate(groups(rows)):
        for keep in sorted({row.keep for row in group.rows}):
            inside = Group(group.setting, group.full, tuple(row for row in group.rows if row.keep == keep))
            if max(len(row.by_turn) for row in inside.rows) < 2:
                continue
            title = caption(group.setting, names)
            keys = keys_of(group.setting, keep=units.keep(keep))
            made.append(Panel(keys, title, _panel(inside, keep, styles, f"t{number}-{units.keep(keep)}", title)))
    return made


def _panel(group: Group, keep: float, styles: Mapping[str, Style], name: str, title: str) -> str:
    frame = Frame(right=122)
    root = svg.panel(frame, name, f"Score by turn at keep {units.keep(keep)}: {title}", _words(group))
    everything = [*group.rows, *([group.full] if group.full else [])]
    last = max(point.turn for row in everything for point in row.by_turn)
    x = Scale(1, max(2, last), frame.left + 12, frame.x1 - 8)
    y, marks = score_scale([point.score for row in everything for point in row.by_turn], frame)
    svg.y_axis(root, frame, y, marks, lambda mark: f"{mark * 100:g}")
    svg.x_axis(root, frame, x, svg.ticks(1, last, min(8, last - 1)), lambda mark: f"{mark:g}")
    svg.x_name(root, frame, "turn" if group.setting.mode == "multi-turn" else "request")
    svg.y_name(root, frame, "score, 0–100")
    if group.full is not None:
        _line(root, group.full, x, y, None)
    for row in group.rows:
        _line(root, row, x, y, styles[row.line])
    _labels(root, frame, everything, y, styles)
    return svg.text_of(root)


def _words(group: Group) -> str:
    everything = [*([group.full] if group.full else []), *group.rows]
    told = [f"{row.recipe}: {', '.join(units.points(point.score) for point in row.by_turn)}" for row in everything]
    return "; ".join(told) + "."


def _line(root: ET.Element, row: Row, x: Scale, y: Scale, style: Style | None) -> None:
    spots = [(x(point.turn), y(point.score)) for point in row.by_turn]
    if style is None:
        group = put(root, "g", class_="series reference", style="--c:var(--ink)")
    else:
        group = put(root, "g", class_="series", data_line=row.line, style=f"--c:{style.css}")
    put(group, "path", class_="line", d=svg.path(spots))
    for point, (px, py) in zip(row.by_turn, spots, strict=True):
        words = f"{units.clean(row.recipe)}\nturn {point.turn}: {units.points(point.score)}"
        words += f"\n{units.plural(point.count, 'answer')}"
        svg.marker(group, style.shape if style else "circle", px, py, 3.4, class_="mark on", data_tip=words)


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
