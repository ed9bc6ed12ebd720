"""Rows -> what a reader sees first: what was run, one line a recipe, and what is missing.  (no torch)"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from . import units
from .pool import ALL, incomplete
from .ranks import LEAST, Places, rivals
from .study import Study
from .tables import Row, Setting, baseline_setting

EMPTY = "No records yet. Run a sweep first; every answered turn appends one record, and the report is made of those."


class Column(NamedTuple):
    task: str
    mode: str


class Scope(NamedTuple):
    """What one glance table holds fixed: everything of a Setting but task and mode."""

    model: str
    visibility: str
    history: str
    context: int
    chunk: int


@dataclass(frozen=True)
class GlanceRow:
    """One recipe over all columns. Fractions are unweighted means over the columns that it has."""

    recipe: str
    line: str
    keep: float
    full: bool
    cells: dict[Column, Row]
    best: frozenset[Column]
    stored: float
    peak: float
    footprint: float
    byte_footprint: float


@dataclass(frozen=True)
class Glance:
    scope: Scope
    columns: tuple[Column, ...]
    rows: tuple[GlanceRow, ...]


@dataclass(frozen=True)
class Run:
    """What was run, as lists of the distinct values."""

    records: int
    models: tuple[str, ...]
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    modes: tuple[str, ...]
    visibilities: tuple[str, ...]
    histories: tuple[str, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    seeds: tuple[int, ...]
    keeps: tuple[float, ...]
    samples: tuple[int, int]
    turns: int
    versions: tuple[str, ...]


def scope_of(setting: Setting) -> Scope:
    return Scope(*(getattr(setting, name) for name in Scope._fields))


def describe(study: Study) -> Run:
    """Of a study that is not empty; the order of its rows is the order of tasks and modes."""
    records, rows = study.facts, study.rows

    def seen(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(row.setting, name) for row in rows))

    return Run(
        records=len(records),
        models=seen("model"),
        recipes=tuple(dict.fromkeys(row.recipe for row in sorted(rows, key=lambda r: (not r.full, r.line, -r.keep)))),
        tasks=seen("task"),
        modes=seen("mode"),
        visibilities=seen("visibility"),
        histories=seen("history"),
        contexts=tuple(sorted({row.setting.context for row in rows})),
        chunks=tuple(sorted({row.setting.chunk for row in rows})),
        seeds=tuple(sorted({record.seed for record in records})),
        keeps=tuple(sorted({row.keep for row in rows if not row.full})),
        samples=(min(row.samples for row in rows), max(row.samples for row in rows)),
        turns=max(len(row.by_turn) for row in rows),
        versions=tuple(sorted({record.versions for record in records if record.versions})),
    )


def glances(rows: Sequence[Row], places: Places) -> list[Glance]:
    """One table for each scope, its columns being task x mode."""
    scopes: dict[Scope, list[Row]] = defaultdict(list)
    for row in rows:
        scopes[scope_of(row.setting)].append(row)
    if len(scopes) > 1:
        _lend_baselines(rows, scopes)
    return [_glance(scope, group, places) for scope, group in scopes.items() if any(not row.full for row in group)] or [
        _glance(scope, group, places) for scope, group in scopes.items()
    ]


def _lend_baselines(rows: Sequence[Row], scopes: dict[Scope, list[Row]]) -> None:
    """A full cache that was run for one visibility or chunk also heads the tables of the others."""
    full = {row.setting: row for row in rows if row.full}
    for row in rows:
        group = scopes[scope_of(row.setting)]
        source = baseline_setting(row.setting, full)
        if source is not None and not any(r.full and r.setting[1:3] == row.setting[1:3] for r in group):
            group.append(full[source])


def _glance(scope: Scope, group: Sequence[Row], places: Places) -> Glance:
    columns = tuple(dict.fromkeys(Column(row.setting.task, row.setting.mode) for row in group))
    best = _best(group, places)
    recipes: dict[str, list[Row]] = defaultdict(list)
    for row in group:
        recipes[row.recipe].append(row)
    made = [_glance_row(cells, best) for cells in recipes.values()]
    return Glance(scope, columns, tuple(sorted(made, key=lambda r: (not r.full, -r.keep, r.line, r.recipe))))


def _best(group: Iterable[Row], places: Places) -> set[tuple[str, Column]]:
    """(recipe, column) of the first place at each keep, where somebody else is not in it."""
    found: set[tuple[str, Column]] = set()
    for (setting, _), rows in rivals([*group]).items():
        first = [row for row in rows if places.get((setting, row.recipe)) == 1]
        if len(first) < len(rows):
            found.update((row.recipe, Column(setting.task, setting.mode)) for row in first)
    return found


def _glance_row(rows: Sequence[Row], best: set[tuple[str, Column]]) -> GlanceRow:
    cells = {Column(row.setting.task, row.setting.mode): row for row in rows}
    head = rows[0]
    return GlanceRow(
        recipe=head.recipe,
        line=head.line,
        keep=head.keep,
        full=head.full,
        cells=cells,
        best=frozenset(column for column in cells if (head.recipe, column) in best),
        stored=fmean(row.memory.stored for row in rows),
        peak=fmean(row.memory.peak for row in rows),
        footprint=fmean(row.memory.footprint for row in rows),
        byte_footprint=fmean(row.memory.byte_footprint for row in rows),
    )


def usual_keep(rows: Sequence[Row]) -> str:
    """The keep at which most recipes were run; of several the one in the middle."""
    counts = Counter(row.keep for row in rows if not row.full)
    usual = sorted(keep for keep, count in counts.items() if count == max(counts.values()))
    return units.keep(usual[(len(usual) - 1) // 2]) if usual else ""


def notes(study: Study) -> list[str]:
    """What a reader must know before comparing: records left out, missing baselines, too few samples."""
    found, rows = [], study.rows
    if study.odd:
        found.append(f"{units.plural(study.odd, 'record')} without a finite score or footprint left out.")
    if study.repeats:
        found.append(f"{units.plural(study.repeats, 'record')} repeated an earlier one; the first of each was taken.")
    lonely = list(dict.fromkeys(row.setting.task for row in rows if row.against is None))
    if lonely:
        found.append(f"No full cache to compare with on {_listing(lonely)}: intervals there are of the score itself.")
    if any(row.samples == 1 for row in rows):
        found.append("Some rows rest on one sample: they have no interval, and say little.")
    if study.pooled and (missing := incomplete(rows)):
        found.append(f"{_listing(missing)} lack a task, and so are not in the figures of {ALL}.")
    if any((row.setting, row.recipe) not in study.places for group in rivals(rows).values() for row in group[1:]):
        found.append(f"Places are given where all recipes of a keep have met the same {LEAST} contexts or more.")
    if len({row.samples for row in rows}) > 1:
        found.append("Rows differ in their number of samples; the full table gives it for each.")
    return found


def _listing(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
