"""Shares of attention by turn, as inline SVG.  (no torch)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from . import svg, units
from .figures import label
from .palette import Style, styles
from .svg import Frame, Scale, put
from .tables import family

_ROOM = 19  # characters of the names to the right


@dataclass(frozen=True)
class Line:
    """A recipe's curve: (turn from 1, share 0..1)."""

    recipe: str
    spots: Sequence[tuple[int, float]]


def panel(name: str, title: str, lines: Sequence[Line], everyone: Sequence[str]) -> str:
    """A panel of `lines`, coloured as they are among `everyone`, all recipes of the page. `name` is unique on the page."""
    frame = Frame(right=134)
    words = "; ".join(f"{one.recipe}: {', '.join(units.points(share) for _, share in one.spots)}" for one in lines)
    root = svg.panel(frame, name, title, f"{words}.")
    last = max(turn for one in lines for turn, _ in one.spots)
    x, y = Scale(1, max(2, last), frame.left + 12, frame.x1 - 8), Scale(0, 1, frame.y1, frame.top)
    svg.y_axis(root, frame, y, svg.ticks(0, 1, 5), lambda mark: f"{mark * 100:g}")
    svg.x_axis(root, frame, x, [mark for mark in svg.ticks(1, last, 8) if mark % 1 == 0], lambda mark: f"{mark:g}")
    svg.x_name(root, frame, "turn")
    svg.y_name(root, frame, "share of attention, %")
    looks = _looks(everyone)
    for one in lines:
        _draw(root, one, x, y, looks[one.recipe])
    heights = [y(one.spots[-1][1]) for one in lines]
    for one, place in zip(lines, svg.spread(heights, 12.5, frame.top + 2, frame.y1 - 2), strict=True):
        label(root, one.recipe, frame.x1 + 7, place, _ROOM, looks[one.recipe], "start")
    return svg.text_of(root)


def _looks(recipes: Sequence[str]) -> dict[str, Style]:
    """The colour of a method in the other figures, where each has one recipe; else one for each recipe."""
    names = {recipe: family(recipe) for recipe in recipes}
    alone = len(set(names.values())) == len(names)
    found = styles(names.values() if alone else names)
    return {recipe: found[name if alone else recipe] for recipe, name in names.items()}


def _draw(root: ET.Element, line: Line, x: Scale, y: Scale, style: Style) -> None:
    group = put(root, "g", class_="series", data_line=line.recipe, style=f"--c:{style.css}")
    put(group, "path", class_="line", d=svg.path([(x(turn), y(share)) for turn, share in line.spots]))
    marks = put(group, "g", class_="mark on")
    for turn, share in line.spots:
        tip = f"{line.recipe}\nturn {turn}: {units.points(share)} %"
        svg.marker(marks, style.shape, x(turn), y(share), 3.4, data_tip=tip)
