"""Figures as SVG and PDF files, tables as CSV and LaTeX files.  (no torch)

CSV holds numbers as they are (scores and fractions 0..1, bytes, seconds), LaTeX what a reader is shown (booktabs).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import pdf, svg, units
from .columns import Column, Value, columns, write, write_range
from .depth import BINS, charts, heat_maps
from .differences import differences
from .facets import Panel, varying
from .figures import numbers, pareto
from .footprints import Grid, grids
from .memory import lives
from .palette import styles
from .study import Study
from .summary import Glance, glances
from .tables import Row
from .turns import by_turn

Entry = str | float | None
_BRIEF = ("recipe", "keep", "place", "score", "against full", "of full", "entry footprint", "byte footprint", "peak")


@dataclass(frozen=True)
class Table:
    """`raw` is what CSV holds, `shown` what LaTeX does; each with its own headings."""

    name: str
    title: str
    raw_heads: tuple[str, ...]
    raw: tuple[tuple[Entry, ...], ...]
    heads: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]


# ---- figures ---------------------------------------------------------------------------------------------------------


def panels(study: Study, usual: str = "") -> Iterator[tuple[str, Panel]]:
    """Every picture of the page with the name of its section."""
    every = study.everything
    look, known = styles(row.line for row in study.rows if not row.full), numbers(every)
    yield from (("pareto", panel) for panel in pareto(every, look, known))
    yield from (("differences", panel) for panel in differences(every, study.places, look, known))
    yield from (("turns", panel) for panel in by_turn(every, look, known, usual))
    yield from (("depth", panel) for panel in heat_maps(study.facts))
    yield from (("memory", panel) for panel in lives(every, look, usual)[0])


def write_figures(study: Study, folder: str | Path, usual: str = "") -> list[Path]:
    """Each picture as NAME.svg (both themes) and NAME.pdf (one page, vectors). Returns the paths."""
    target, made, taken = Path(folder), [], set()
    target.mkdir(parents=True, exist_ok=True)
    for section, panel in panels(study, usual):
        stem = base = file_name(section, *(value for key, value in panel.keys.items() if key in _told(panel)))
        number = 1
        while stem in taken:
            number, stem = number + 1, f"{base}-{number + 1}"
        taken.add(stem)
        made += [target / f"{stem}.svg", target / f"{stem}.pdf"]
        made[-2].write_text(svg.standalone(panel.svg), encoding="utf-8")
        made[-1].write_bytes(pdf.page(panel.svg))
    return made


def _told(panel: Panel) -> Sequence[str]:
    """The facts of a panel that its file is named by."""
    return [key for key in ("task", "mode", "visibility", "chunk", "keep", "measure") if panel.keys.get(key)]


def file_name(*parts: str) -> str:
    return "-".join(filter(None, (re.sub(r"[^a-zA-Z0-9.]+", "_", part).strip("_") for part in parts)))[:120]


# ---- tables ----------------------------------------------------------------------------------------------------------


def write_tables(study: Study, folder: str | Path) -> list[Path]:
    """Each table as NAME.csv and NAME.tex. Returns the paths."""
    target, made = Path(folder), []
    target.mkdir(parents=True, exist_ok=True)
    for table in tables(study):
        made += [target / f"{table.name}.csv", target / f"{table.name}.tex"]
        with made[-2].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([table.raw_heads, *map(_csv_line, table.raw)])
        made[-1].write_text(latex(table), encoding="utf-8")
    return made


def _csv_line(line: Sequence[Entry]) -> list[str]:
    return ["" if v is None else units.clean(v) if isinstance(v, str) else f"{v:.6g}" for v in line]


def tables(study: Study) -> list[Table]:
    found = [_numbers(study), _turns(study), _depth(study)]
    found += [_critical(grid, number) for number, grid in enumerate(grids(study)[0], start=1)]
    for number, glance in enumerate(glances(study.everything, study.places), start=1):
        found.append(_glance(glance, number))
    return [table for table in found if table.raw]


def _numbers(study: Study) -> Table:
    heads = columns(study.everything, study.places)
    brief = [c for c in heads if c.head in _BRIEF or c.head in varying(row.setting for row in study.everything)]
    raw_heads = [
        name for c in heads for name in ([c.head, f"{c.head} low", f"{c.head} high"] if c.interval else [c.head])
    ]
    raw = [tuple(entry for c in heads for entry in (tuple(c.of(row)) if c.interval else (c.of(row).value,)))
           for row in study.everything]  # fmt: skip
    shown = [tuple(_told_cell(c, c.of(row)) for c in brief) for row in study.everything]
    return Table("numbers", "Every number", tuple(raw_heads), tuple(raw), tuple(c.head for c in brief), tuple(shown))


def _told_cell(column: Column, value: Value) -> str:
    span = write_range(column, value) if column.interval else ""
    return f"{write(column, value)} [{span}]" if span else write(column, value)


def _glance(glance: Glance, number: int) -> Table:
    names = [f"{column.task} {column.mode}" for column in glance.columns]
    facts = ("stored", "peak", "footprint", "byte footprint")
    raw_heads = ("recipe", "keep", *(f"{name}{part}" for name in names for part in ("", " low", " high")), *facts)
    raw, shown = [], []
    for row in glance.rows:
        memory = (row.stored, row.peak, row.footprint, row.byte_footprint)
        cells = [row.cells.get(column) for column in glance.columns]
        scores = [part for cell in cells for part in _three(cell)]
        raw.append((row.recipe, None if row.full else row.keep, *scores, *memory))
        shown.append((row.recipe, *(_plus_minus(cell) for cell in cells), *map(units.points, memory)))
    title = "At a glance: " + ", ".join(f"{key} {value}" for key, value in glance.scope._asdict().items())
    heads = ("recipe", *names, *facts)
    return Table(f"glance-{number}", title, raw_heads, tuple(raw), heads, tuple(shown))


def _three(row: Row | None) -> tuple[Entry, Entry, Entry]:
    if row is None:
        return None, None, None
    low, high = row.whiskers or (None, None)
    return row.score.mean, low, high


def _plus_minus(row: Row | None) -> str:
    if row is None:
        return units.NONE
    half = f" ± {units.points((row.whiskers[1] - row.whiskers[0]) / 2)}" if row.whiskers else ""
    return units.points(row.score.mean) + half


def _critical(grid: Grid, number: int) -> Table:
    """Cells as text in both files: `<`, `>` and `never` are part of the number."""
    title = "Critical footprint: " + ", ".join(f"{key} {value}" for key, value in grid.keys.items())
    rows = tuple((line, *cells) for line, cells in grid.lines)
    return Table(f"critical-{number}", title, ("method", *grid.columns), rows, ("method", *grid.columns), rows)


def _turns(study: Study) -> Table:
    rows = [row for row in study.everything if len(row.by_turn) > 1]
    facts = varying(row.setting for row in rows) if rows else []
    raw = [
        (row.recipe, *_facts(row, facts), point.turn, point.count, point.score, point.low, point.high)
        for row in rows
        for point in row.by_turn
    ]
    last = max((row.by_turn[-1].turn for row in rows), default=0)
    shown = []
    for row in rows:
        scores = {point.turn: units.points(point.score) for point in row.by_turn}
        told = [scores.get(turn, units.NONE) for turn in range(1, last + 1)]
        shown.append((row.recipe, *_facts(row, facts), *told))
    heads = ("recipe", *facts, *(f"turn {turn}" for turn in range(1, last + 1)))
    raw_heads = ("recipe", *facts, "turn", "answers", "score", "low", "high")
    return Table("turns", "Score by turn", raw_heads, tuple(raw), heads, tuple(shown))


def _facts(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(getattr(row.setting, name)) for name in names)


def _depth(study: Study) -> Table:
    found = charts(study.facts)
    facts = varying(chart.setting for chart in found)
    raw: list[tuple[Entry, ...]] = []
    shown = []
    for chart in found:
        where = tuple(str(getattr(chart.setting, fact)) for fact in facts)
        for keep, tiles in zip(chart.keeps, chart.tiles, strict=True):
            told = [units.points(tile.score if tile else None) for tile in tiles]
            shown.append((chart.line, *where, units.keep(keep), *told))
            for number, tile in enumerate(tiles):
                if tile is not None:
                    raw.append((chart.line, *where, keep, number / BINS, (number + 1) / BINS, tile.answers, tile.score))
    spans = [f"{100 * b // BINS}-{100 * (b + 1) // BINS} %" for b in range(BINS)]
    raw_heads = ("method", *facts, "keep", "from", "to", "answers", "score")
    return Table(
        "depth", "Score by depth and keep", raw_heads, tuple(raw), ("method", *facts, "keep", *spans), tuple(shown)
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "\u202f": r"\,",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def escape(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in units.clean(text).replace("\n", " "))


def latex(table: Table) -> str:
    """A tabular with booktabs rules; text to the left, numbers to the right."""
    aligned = "".join("r" if _numeric(column) else "l" for column in zip(*table.shown, strict=True))
    lines = [rf"% {escape(table.title)}", rf"\begin{{tabular}}{{{aligned}}}", r"\toprule"]
    lines += [" & ".join(map(escape, table.heads)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, line)) + r" \\" for line in table.shown]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _numeric(column: Sequence[str]) -> bool:
    return all(re.match(r"[−+<>]?\d|never", text) or text == units.NONE for text in column)
