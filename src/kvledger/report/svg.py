"""Small parts of hand-made SVG: elements, scales, ticks, axes, markers, labels that keep out of each other's way.

Built with ElementTree, so that text is escaped and the result is well-formed.  (no torch)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from xml.etree import ElementTree as ET

from .units import clean

NAMESPACE = "http://www.w3.org/2000/svg"
Number = float | int


def put(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str | Number) -> ET.Element:
    """A child element. `class_` is class, other underscores are hyphens, numbers are rounded to a tenth of a unit."""
    names = {name.rstrip("_").replace("_", "-"): _write(value) for name, value in attributes.items()}
    child = ET.SubElement(parent, tag, names)
    child.text = None if text is None else clean(text)
    return child


def _write(value: str | Number) -> str:
    if isinstance(value, str):
        return clean(value)
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Scale:
    """Data to pixels, straight."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def nice_step(span: float, count: int, bases: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """The smallest round step that needs at most `count` steps for `span`."""
    if span <= 0:
        return 1.0
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    return next(base * power for base in bases if base * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    step = nice_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def token_ticks(high: float, count: int = 4) -> list[float]:
    """Ticks in powers of two from 1024 upwards, as context lengths are."""
    if high < 2048:
        return ticks(0, high, count)
    step = 2.0 ** math.ceil(math.log2(high / count) - 1e-9)
    return [number * step for number in range(int(high // step) + 1)]


@dataclass(frozen=True)
class Frame:
    """The plotting area of a panel, in the units of its viewBox."""

    width: float = 420
    height: float = 270
    left: float = 44
    right: float = 12
    top: float = 26
    bottom: float = 40

    @property
    def x1(self) -> float:
        return self.width - self.right

    @property
    def y1(self) -> float:
        return self.height - self.bottom


def panel(frame: Frame, name: str, title: str, description: str) -> ET.Element:
    """The root of a panel. `name` is unique on the page: title and description are tied to the picture by it."""
    root = ET.Element("svg", {"viewBox": f"0 0 {frame.width:g} {frame.height:g}", "role": "img", "class": "plot"})
    root.set("aria-labelledby", f"{name}-t {name}-d")
    put(root, "title", title, id=f"{name}-t")
    put(root, "desc", description, id=f"{name}-d")
    return root


def y_axis(root: ET.Element, frame: Frame, scale: Scale, marks: Sequence[float], write: Callable[[float], str]) -> None:
    """Hairline grid with labels to its left; the lowest line is the axis."""
    for mark in marks:
        y = scale(mark)
        kind = "axis" if abs(y - frame.y1) < 0.5 else "grid"
        put(root, "line", class_=kind, x1=frame.left, x2=frame.x1, y1=y, y2=y)
        put(root, "text", write(mark), class_="tick", x=frame.left - 7, y=y + 3.5, text_anchor="end")


def x_axis(root: ET.Element, frame: Frame, scale: Scale, marks: Sequence[float], write: Callable[[float], str]) -> None:
    for mark in marks:
        x = scale(mark)
        put(root, "line", class_="axis", x1=x, x2=x, y1=frame.y1, y2=frame.y1 + 4)
        put(root, "text", write(mark), class_="tick", x=x, y=frame.y1 + 16, text_anchor="middle")


def x_name(root: ET.Element, frame: Frame, text: str) -> None:
    middle = (frame.left + frame.x1) / 2
    put(root, "text", text, class_="name", x=middle, y=frame.height - 6, text_anchor="middle")


def y_name(root: ET.Element, frame: Frame, text: str) -> None:
    """Written flat above the axis, where it is read without turning the head."""
    put(root, "text", text, class_="name", x=0, y=11)


def path(spots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_write(x)},{_write(y)}" for x, y in spots)


def uprights(strokes: Sequence[tuple[float, float, float]]) -> str:
    """Upright strokes (x, y from, y to) as one path."""
    return "".join(f"M{_write(x)},{_write(low)}L{_write(x)},{_write(high)}" for x, low, high in strokes)


def marker(parent: ET.Element, shape: str, x: float, y: float, radius: float = 4.2, **attributes: str) -> ET.Element:
    """A mark; class `mark on` (filled) or `mark off` is its own or its group's."""
    if shape == "circle":
        return put(parent, "circle", cx=x, cy=y, r=radius, **attributes)
    return put(parent, "path", d=_outline(shape, x, y, radius), **attributes)


def _outline(shape: str, x: float, y: float, r: float) -> str:
    """Shapes of about the area of the circle, as short as they can be written: a page has thousands."""
    if shape == "square":
        a = r * 0.89
        return f"M{_write(x - a)},{_write(y - a)}h{_write(2 * a)}v{_write(2 * a)}h{_write(-2 * a)}z"
    if shape == "diamond":
        half = _write(r * 1.25)
        return f"M{_write(x - r * 1.25)},{_write(y)}l{half},-{half}l{half},{half}l-{half},{half}z"
    a, sign = r * 1.2, 1 if shape == "down" else -1
    return f"M{_write(x - a)},{_write(y - sign * a * 0.72)}h{_write(2 * a)}l{_write(-a)},{_write(sign * a * 1.72)}z"


def cell(parent: ET.Element, box: tuple[float, float, float, float], share: float | None, tip: str = "") -> None:
    """A tile (x, y, width, height) of a heat map, inside a group of class `cells`: the tint is `share` of 0..1, and so is
    the number in it; None is an empty tile."""
    x, y, width, height = box
    size = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": height - 1}
    if share is None:
        put(parent, "rect", **size, class_="none")
        return
    opacity = f"{0.03 + 0.97 * min(max(share, 0.0), 1.0):.2f}"
    put(parent, "rect", **size, fill_opacity=opacity, **({"data_tip": tip} if tip else {}))
    put(parent, "text", f"{share * 100:.0f}", x=x + width / 2, y=y + height / 2 + 3.6)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as close to the wanted ones as a distance of `gap` allows, within [low, high] as far as there is room.

    Labels that would touch form a block, which is centred on what its members want.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    blocks: list[tuple[float, int]] = []  # (sum of the members' wishes for the block's start, members)
    for number in order:
        total, size = wanted[number], 1
        while blocks and blocks[-1][0] / blocks[-1][1] + blocks[-1][1] * gap > total / size:
            before, members = blocks.pop()
            total, size = before + total - size * members * gap, members + size
        blocks.append((total, size))
    starts = [total / size + place * gap for total, size in blocks for place in range(size)]
    result = [0.0] * len(wanted)
    for place, (number, start) in enumerate(zip(order, starts, strict=True)):
        result[number] = min(max(start, low + place * gap), high - (len(wanted) - 1 - place) * gap)
    return result


def thin(spots: Sequence[tuple[float, float]], step: float = 0.4) -> list[tuple[float, float]]:
    """Leaves out points that nobody could see: closer than `step` in both directions to the last one drawn."""
    drawn = list(spots[:1])
    for x, y in spots[1:]:
        if abs(x - drawn[-1][0]) >= step or abs(y - drawn[-1][1]) >= step:
            drawn.append((x, y))
    return drawn if not spots or drawn[-1] == spots[-1] else [*drawn, spots[-1]]


def text_of(root: ET.Element) -> str:
    """For a place inside an HTML page, whose style sheet holds the colours."""
    return ET.tostring(root, encoding="unicode")


def style_sheet() -> str:
    return (resources.files(__package__) / "figure.css").read_text(encoding="utf-8")


def standalone(inline: str) -> str:
    """A figure as a file of its own, for a README or a paper: with its namespace and its style sheet."""
    root = ET.fromstring(inline)
    root.set("xmlns", NAMESPACE)
    sheet = ET.Element("style")
    sheet.text = style_sheet()
    root.insert(2, sheet)
    return text_of(root)
