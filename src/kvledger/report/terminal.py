"""The compact table for a terminal.  (no torch)"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvledger.records import Record

from . import units
from .study import Study, collect
from .summary import EMPTY, Column, Glance, GlanceRow, Scope, glances, notes

_SHORT = {"multi-turn": "turns", "multi-request": "requests"}
_RECIPE_WIDTHS, _SCORE_WIDTH, _FACT_WIDTH = (16, 34), 10, 7
_FACTS = ("stored", "peak", "footprint")
_HEADS = {"footprint": "footpr."}
LEGEND = (
    "scores: 0–100 ± half the 95 % interval, paired with the full cache where it was run; bold or *: first place at a keep.\n"
    "stored, peak, footprint: % of the full cache. stored: bytes held when the question comes; peak: most entries at once; "
    "footprint: entries held, summed over the request's life."
)


def print_table(records: Sequence[Record], console: Console | None = None) -> None:
    """Prints one table a scope (model, visibility, context, chunk), and below it a legend and what is missing."""
    print_study(collect(records), console)


def print_study(study: Study, console: Console | None = None) -> None:
    out = console or Console()
    if not study.rows:
        out.print(EMPTY)
        return
    tables = glances(study.rows, study.places)
    for glance in tables:
        _print_glance(glance, tables, out)
    out.print()
    out.print(Padding(Text(LEGEND, style="dim"), (0, 1)))
    for note in notes(study):
        out.print(Padding(Text(f"! {note}", style="yellow"), (0, 1)))


def terminal(records: Sequence[Record], width: int = 110) -> str:
    """The same as plain text without colour."""
    return plain(collect(records), width)


def plain(study: Study, width: int = 110) -> str:
    console = Console(width=width, no_color=True, color_system=None)
    with console.capture() as capture:
        print_study(study, console)
    return capture.get()


def _print_glance(glance: Glance, among: Sequence[Glance], out: Console) -> None:
    out.print(Padding(Text(_title(glance, [other.scope for other in among]), style="bold"), (1, 1, 0, 1)))
    longest = max(len(row.recipe) for row in glance.rows)
    recipe_width = min(max(longest, _RECIPE_WIDTHS[0]), _RECIPE_WIDTHS[1])
    blocks = _blocks(glance.columns, out.width - recipe_width)
    for number, columns in enumerate(blocks):
        if number:
            out.print()
        table = _table(glance, columns, recipe_width, facts=number == len(blocks) - 1, colour=bool(out.color_system))
        out.print(Padding(table, (0, 0, 0, 1)))


def _title(glance: Glance, among: Sequence[Scope]) -> str:
    """The model and the context always; the rest only where it tells tables apart or is not the plain case."""
    scope = glance.scope
    parts = [
        units.clean(scope.model),
        units.clean(_suite(glance.columns)).rstrip("/"),
        f"{units.tokens(scope.context)} tokens",
    ]
    if scope.chunk:
        parts.append(f"read in chunks of {units.tokens(scope.chunk)}")
    elif len({other.chunk for other in among}) > 1:
        parts.append("read in one shot")
    parts.append(f"question {scope.visibility}")
    if scope.history != "gold" or len({other.history for other in among}) > 1:
        parts.append(f"{scope.history} history")
    return " · ".join(filter(None, parts))


def _suite(columns: Sequence[Column]) -> str:
    """`scbench/` where all tasks are of one suite: the title names it, the headings need not."""
    suites = {column.task.rpartition("/")[0] for column in columns}
    return f"{suite}/" if len(suites) == 1 and (suite := suites.pop()) else ""


def _blocks(columns: tuple[Column, ...], room: int) -> list[tuple[Column, ...]]:
    """Columns in as many tables as the room beside the recipes asks for; each must leave room for the facts."""
    many = max(1, (room - len(_FACTS) * (_FACT_WIDTH + 1) - 1) // (_SCORE_WIDTH + 1))
    return [columns[start : start + many] for start in range(0, len(columns), many)]


def _table(glance: Glance, columns: Sequence[Column], recipe_width: int, facts: bool, colour: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("recipe", overflow="fold", width=recipe_width)
    suite = _suite(glance.columns)
    for column in columns:
        heading = f"{_fold(units.clean(column.task.removeprefix(suite)))}\n{_SHORT.get(column.mode, column.mode)}"
        table.add_column(Text(heading), justify="right", overflow="fold", vertical="bottom", width=_SCORE_WIDTH)
    for name in _FACTS if facts else ():
        table.add_column(Text(f"{_HEADS.get(name, name)}\n%"), justify="right", no_wrap=True, width=_FACT_WIDTH)
    previous: GlanceRow | None = None
    for row in glance.rows:
        if previous is not None and (row.full, row.keep) != (previous.full, previous.keep):
            table.add_section()
        table.add_row(*_cells(row, columns, facts, colour))
        previous = row
    return table


def _fold(name: str) -> str:
    """A task's name in lines that fit a score column, broken after a slash or an underscore where it has them."""
    folded = [""]
    for part in re.findall(r"[^/_]+[/_]?|[/_]", name):
        if folded[-1] and len(folded[-1] + part) > _SCORE_WIDTH:
            folded.append("")
        folded[-1] += part
    return "\n".join(folded)


def _cells(row: GlanceRow, columns: Sequence[Column], facts: bool, colour: bool) -> list[Text]:
    cells = [Text(units.clean(row.recipe), style="bold" if row.full else "")]
    cells += [_score(row, column, colour) for column in columns]
    if facts:
        cells += [Text(units.points(value)) for value in (row.stored, row.peak, row.footprint)]
    return cells


def _score(row: GlanceRow, column: Column, colour: bool) -> Text:
    """`*81.3 ±4.2`; the star only where bold cannot be seen."""
    found = row.cells.get(column)
    if found is None:
        return Text(units.NONE, style="dim")
    best = column in row.best
    star = "*" if best and not colour else ""
    text = Text(star + units.points(found.score.mean).replace("100.0", "100"), style="bold" if best else "")
    if found.whiskers is None:
        return text
    return text.append(f" ±{_three((found.whiskers[1] - found.whiskers[0]) / 2)}", style="not bold dim")


def _three(spread: float) -> str:
    """Points in three characters, so that the scores before them line up."""
    return f"{spread * 100:.1f}" if spread < 0.0995 else f"{spread * 100:3.0f}"
