"""Score by where the evidence lies and by how much is kept, as heat maps.  (no torch)

A method that forgets the middle, or all but the end, shows it here at once. Tasks whose evidence is everywhere (depth 0 in
every record) are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kvledger.records import Record

from . import svg, units
from .facets import Panel, caption, keys_of, varying
from .pool import ALL
from .svg import Frame, put
from .tables import Setting, is_full, line_names, setting_of, setting_order

BINS = 5
_CELL, _ROW, _MOST_PANELS = 44, 20, 60


@dataclass(frozen=True)
class Tile:
    score: float
    answers: int


@dataclass(frozen=True)
class Chart:
    """One method in one setting. `keeps` from the largest to the smallest; `tiles` [keeps][BINS], None without answers."""

    setting: Setting
    line: str
    keeps: tuple[float, ...]
    tiles: tuple[tuple[Tile | None, ...], ...]


def charts(facts: Sequence[Record]) -> list[Chart]:
    """For each method and setting, and for all tasks together where there are several; the full cache at keep 1."""
    placed = {record.task for record in facts if record.depth > 0}
    found: dict[tuple[Setting, str], dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    lines = line_names(facts)
    for record in facts:
        if record.task in placed:
            line = "full cache" if is_full(record) else lines[record.recipe]
            for setting in _settings(setting_of(record), len(placed) > 1):
                found[setting, line][record.keep].append(record)
    made = [_chart(setting, line, keeps) for (setting, line), keeps in found.items()]
    return sorted(made, key=lambda chart: (chart.setting.task != ALL, setting_order(chart.setting), chart.line))


def _settings(setting: Setting, several: bool) -> Iterable[Setting]:
    yield setting
    if several:
        yield setting._replace(task=ALL)


def _chart(setting: Setting, line: str, keeps: Mapping[float, Sequence[Record]]) -> Chart:
    order = tuple(sorted(keeps, reverse=True))
    return Chart(setting, line, order, tuple(_tiles(keeps[keep]) for keep in order))


def _tiles(group: Sequence[Record]) -> tuple[Tile | None, ...]:
    bins: dict[int, list[float]] = defaultdict(list)
    for record in group:
        bins[min(max(int(record.depth * BINS), 0), BINS - 1)].append(record.score)
    return tuple(Tile(fmean(bins[b]), len(bins[b])) if b in bins else None for b in range(BINS))


def heat_maps(facts: Sequence[Record]) -> list[Panel]:
    """A panel a chart; of all tasks together alone, where all would be too many."""
    found = charts(facts)
    names = varying(chart.setting for chart in found)
    if len(found) > _MOST_PANELS:
        found = [chart for chart in found if chart.setting.task == ALL] or found[:_MOST_PANELS]
    made = []
    for number, chart in enumerate(found):
        where = caption(chart.setting, names)
        title = f"{units.clean(chart.line)} · {where}"
        made.append(Panel(keys_of(chart.setting), title, _panel(chart, f"h{number}", title)))
    return made


def _panel(chart: Chart, name: str, title: str) -> str:
    frame = Frame(width=60 + _CELL * BINS + 12, height=26 + _ROW * len(chart.keeps) + 38, left=60)
    root = svg.panel(frame, name, f"Score by depth and keep: {title}", _words(chart))
    put(root, "text", "keep", class_="name", x=frame.left - 8, y=18, text_anchor="end")
    for line, (keep, tiles) in enumerate(zip(chart.keeps, chart.tiles, strict=True)):
        top = frame.top + _ROW * line
        put(root, "text", units.keep(keep), class_="tick", x=frame.left - 8, y=top + 13.6, text_anchor="end")
        cells = put(root, "g", class_="cells")
        for column, tile in enumerate(tiles):
            box = (frame.left + _CELL * column, top, _CELL, _ROW)
            svg.cell(cells, box, tile.score if tile else None, units.plural(tile.answers, "answer") if tile else "")
    for edge in range(BINS + 1):
        left, foot = frame.left + _CELL * edge, frame.top + _ROW * len(chart.keeps) + 14
        put(root, "text", f"{edge * 100 // BINS}", class_="tick", x=left, y=foot, text_anchor="middle")
    middle = frame.left + _CELL * BINS / 2
    put(root, "text", "depth of the evidence, %", class_="name", x=middle, y=frame.height - 5, text_anchor="middle")
    return svg.text_of(root)


def _words(chart: Chart) -> str:
    """Keep by keep, from the start of the context to its end."""
    told = [
        f"keep {units.keep(keep)}: {', '.join(units.points(tile.score if tile else None) for tile in tiles)}"
        for keep, tiles in zip(chart.keeps, chart.tiles, strict=True)
    ]
    return "; ".join(told) + "."
