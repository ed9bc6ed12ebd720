"""Curves of a training run and the map of its heads, as inline SVG.  (no torch)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from . import svg, units
from .svg import Frame, Scale, put

Spots = Sequence[tuple[float, float]]
_FRAME = Frame(right=86)
_HOVERS = 60  # places of a line that tell their value to a pointer
_MOST_LAYERS = 32  # columns of a map; more layers continue below
_CELL, _ROW, _LEFT, _TOP, _GAP = 31, 21, 44, 26, 20


@dataclass(frozen=True)
class Line:
    """One curve: (step, value) pairs. `kind` is solid, faint (the noise behind another line) or dashed."""

    name: str
    colour: str
    spots: Spots
    kind: str = "solid"


def curves(
    name: str, title: str, axis: str, lines: Sequence[Line], write: Callable[[float], str], low: float | None = None
) -> str:
    """A panel of lines over steps. `low` pins the lower end of the axis; else it follows the values."""
    frame, shown = _FRAME, [line for line in lines if line.spots]
    root = svg.panel(frame, name, title, _words(shown, write))
    steps = [step for line in shown for step, _ in line.spots]
    values = [value for line in shown for _, value in line.spots]
    x = Scale(min(steps), max(steps), frame.left, frame.x1)
    bottom, top = min(values) if low is None else low, max(values)
    step = svg.nice_step((top - bottom) or abs(top) or 1.0, 5)
    bottom, top = math.floor(bottom / step + 1e-9) * step, math.ceil(top / step - 1e-9) * step
    y = Scale(bottom, top if top > bottom else bottom + step, frame.y1, frame.top)
    svg.y_axis(root, frame, y, svg.ticks(y.low, y.high, 5), write)
    svg.x_axis(
        root, frame, x, [mark for mark in svg.ticks(x.low, x.high, 5) if mark % 1 == 0], lambda mark: f"{mark:g}"
    )
    svg.x_name(root, frame, "step")
    svg.y_name(root, frame, axis)
    for line in shown:
        _draw(root, line, x, y, write)
    _names(root, frame, [line for line in shown if line.name], y)
    return svg.text_of(root)


def smooth(spots: Spots) -> list[tuple[float, float]]:
    """A running mean over about a thirtieth of the run, in which early values fade."""
    share, mean, weight, found = 1 / max(1.0, len(spots) / 30), 0.0, 0.0, []
    for step, value in spots:
        mean, weight = mean + share * (value - mean), weight + share * (1 - weight)
        found.append((step, mean / weight))
    return found


def _words(lines: Sequence[Line], write: Callable[[float], str]) -> str:
    told = [f"{line.name}: {write(line.spots[0][1])} to {write(line.spots[-1][1])}" for line in lines if line.name]
    return "; ".join(told) + "."


def _draw(root: ET.Element, line: Line, x: Scale, y: Scale, write: Callable[[float], str]) -> None:
    group = put(root, "g", style=f"--c:{line.colour}")
    places = svg.thin([(x(step), y(value)) for step, value in line.spots])
    look = {"faint": "opacity:.3;stroke-width:1", "dashed": "stroke-dasharray:5 3;stroke-width:1.2"}.get(line.kind, "")
    put(group, "path", class_="line", d=svg.path(places), style=look)
    if len(line.spots) == 1:
        svg.marker(group, "circle", *places[0], 2.4, class_="mark on")
    if line.kind == "faint":
        return
    for step, value in line.spots[:: max(1, len(line.spots) // _HOVERS)]:
        words = f"step {step:g}\n{line.name} {write(value)}"
        put(group, "circle", cx=x(step), cy=y(value), r=5, style="fill:transparent", data_tip=words)


def _names(root: ET.Element, frame: Frame, lines: Sequence[Line], y: Scale) -> None:
    heights = [y(line.spots[-1][1]) for line in lines]
    for line, place in zip(lines, svg.spread(heights, 13, frame.top, frame.y1), strict=True):
        colour = f"--c:{line.colour}"
        put(root, "text", line.name, class_="label halo", x=frame.x1 + 6, y=place + 3.8, style=colour)


# ---- the map of the heads --------------------------------------------------------------------------------------------


def heads(scores: Sequence[Sequence[float]], full: Sequence[Sequence[bool]]) -> tuple[str, int]:
    """A map of [layers][KV heads]: tint and number are the score, an outline marks a full head. And its width in pixels."""
    rows, bands = len(scores[0]), math.ceil(len(scores) / _MOST_LAYERS)
    columns = math.ceil(len(scores) / bands)
    tall = rows * _ROW + 38 + _GAP
    frame = Frame(width=_LEFT + columns * _CELL + 8, height=_TOP + bands * tall - _GAP, left=_LEFT)
    count = sum(map(sum, full))
    words = f"{count} of {len(scores) * rows} KV heads are full. Each cell is written out."
    root = svg.panel(frame, "heads", "Score of each KV head", words)
    put(root, "text", "KV head", class_="name", x=0, y=11)
    for layer, (line, marks) in enumerate(zip(scores, full, strict=True)):
        left, top = _LEFT + layer % columns * _CELL, _TOP + layer // columns * tall
        if layer % columns == 0:
            _sides(root, rows, top)
        for head, (score, on) in enumerate(zip(line, marks, strict=True)):
            _cell(root, left, top + head * _ROW, score, f"layer {layer}, KV head {head}", on)
        foot = top + rows * _ROW
        put(root, "text", str(layer), class_="tick", x=left + _CELL / 2, y=foot + 14, text_anchor="middle")
        put(root, "text", str(sum(marks)), class_="tick", x=left + _CELL / 2, y=foot + 29, text_anchor="middle")
    return svg.text_of(root), int(frame.width * 1.08)


def _sides(root: ET.Element, rows: int, top: float) -> None:
    for head in range(rows):
        middle = top + head * _ROW + _ROW / 2 + 3.5
        put(root, "text", str(head), class_="tick", x=_LEFT - 7, y=middle, text_anchor="end")
    for words, drop in (("layer", 14), ("full", 29)):
        put(root, "text", words, class_="name", x=_LEFT - 7, y=top + rows * _ROW + drop, text_anchor="end")


def _cell(root: ET.Element, x: float, y: float, score: float, name: str, full: bool) -> None:
    words = f"{name}\nscore {score:.4f}\n{'full: keeps everything' if full else 'streaming: keeps sink and window'}"
    group = put(root, "g", data_tip=words)
    size = {"x": x + 1, "y": y + 1, "width": _CELL - 2, "height": _ROW - 2}
    put(group, "rect", **size, style="fill:var(--paper)")
    put(group, "rect", **size, style=f"fill:var(--heat);fill-opacity:{0.04 + 0.96 * score:.3f}")
    if full:
        put(group, "rect", **size, style="fill:none;stroke:var(--ink);stroke-width:2")
    number = units.NONE if not math.isfinite(score) else "1" if score >= 0.995 else f"{score:.2f}".lstrip("0")
    put(group, "text", number, x=x + _CELL / 2, y=y + _ROW / 2 + 3.6, text_anchor="middle", style="fill:var(--ink)")
