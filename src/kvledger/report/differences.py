"""Differences to the full cache on the same turns, with intervals and places, as inline SVG panels.  (no torch)

Recipes of a keep stand in the order of their places; those that share a place cannot be told apart from the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from . import svg, units
from .facets import Panel, caption, keys_of, varying
from .figures import Numbers, short
from .palette import Style
from .pool import ALL
from .ranks import Places, rivals
from .svg import Frame, Scale, put
from .tables import Row

_LINE, _NAMES, _MOST_PANELS, _LONGEST = 16, 132, 24, 22


def differences(rows: Sequence[Row], places: Places, styles: Mapping[str, Style], known: Numbers) -> list[Panel]:
    """A panel for each setting and keep at which something stands beside the full cache; of all tasks together alone, where
    all would be too many."""
    names, made = varying(row.setting for row in rows), []
    found = {key: [row for row in group if row.against is not None] for key, group in rivals(rows).items()}
    if len(found) > _MOST_PANELS and any(setting.task == ALL for setting, _ in found):
        found = {key: group for key, group in found.items() if key[0].task == ALL}
    for number, ((setting, keep), group) in enumerate((key, group) for key, group in found.items() if group):
        title = " · ".join(filter(None, [caption(setting, names), f"keep {units.keep(keep)}"]))
        panel = _panel(_ordered(group, places), places, styles, known, f"d{number}", title)
        made.append(Panel(keys_of(setting, keep=units.keep(keep)), title, panel))
    return made


def _ordered(rows: Sequence[Row], places: Places) -> list[Row]:
    return sorted(rows, key=lambda row: (places.get((row.setting, row.recipe), 0), -_gap(row)[0], row.recipe))


def _gap(row: Row) -> tuple[float, float | None, float | None]:
    assert row.against is not None
    return row.against.difference.mean, row.against.difference.low, row.against.difference.high


def _panel(
    rows: Sequence[Row], places: Places, styles: Mapping[str, Style], known: Numbers, name: str, title: str
) -> str:
    frame = Frame(height=66 + _LINE * len(rows), left=_NAMES, right=40)
    root = svg.panel(frame, name, f"Difference to the full cache: {title}", _words(rows))
    values = [value for row in rows for value in _gap(row) if value is not None]
    step = svg.nice_step(max([*values, 0.05]) - min([*values, -0.05]), 4)
    low, high = min([*values, -0.05]) // step * step, max([*values, 0.0])
    x = Scale(low, high + step * 0.1, frame.left, frame.x1)
    _bands(root, frame, rows, places)
    for mark in svg.ticks(x.low, x.high, 5):
        kind = "axis" if abs(mark) < 1e-9 else "grid"
        put(root, "line", class_=kind, x1=x(mark), x2=x(mark), y1=frame.top - 6, y2=frame.y1 - 4)
        put(root, "text", units.points(mark, True).removesuffix(".0"), class_="tick", x=x(mark), y=frame.y1 + 10,
            text_anchor="middle")  # fmt: skip
    put(root, "text", "place", class_="name", x=frame.width, y=11, text_anchor="end")
    svg.x_name(root, frame, "points against the full cache, same turns")
    for place, row in enumerate(rows):
        _row(root, frame, row, frame.top + _LINE * (place + 0.5), x, styles[row.line], known)
    return svg.text_of(root)


def _words(rows: Sequence[Row]) -> str:
    told = [f"{row.recipe}: {units.points(_gap(row)[0], True)}" for row in rows[:12]]
    return "; ".join(told) + "."


def _bands(root: ET.Element, frame: Frame, rows: Sequence[Row], places: Places) -> None:
    """Every other group is tinted; its place stands at its first row."""
    before, tinted = None, True
    for number, row in enumerate(rows):
        place = places.get((row.setting, row.recipe))
        top = frame.top + _LINE * number
        tinted = tinted != (place != before)
        if tinted:
            put(root, "rect", class_="band", x=0, y=top, width=frame.width, height=_LINE)
        if place is not None and place != before:
            put(root, "text", str(place), class_="tick", x=frame.width, y=top + 11.5, text_anchor="end")
        before = place


def _row(root: ET.Element, frame: Frame, row: Row, y: float, x: Scale, style: Style, known: Numbers) -> None:
    mean, low, high = _gap(row)
    group = put(root, "g", class_="series", data_line=row.line, style=f"--c:{style.css}")
    words = short(row.line)
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
    put(group, "text", words, class_="label", x=frame.left - 8, y=y + 3.6, text_anchor="end")
    if low is not None and high is not None:
        put(group, "path", class_="line", d=svg.path([(x(low), y), (x(high), y)]))
    told = {"data_r": known[row.setting, row.recipe]}
    svg.marker(group, style.shape, x(mean), y, 3.8, class_="mark on", **told)
