"""The critical footprints of a study, for the page and the files: all tasks, kinds of tasks, single tasks.  (no torch)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvledger.critical import Question

from . import critical, units
from .pool import ALL, groups
from .study import Study

AXES = {"entries": "entry footprint", "stored": "stored bytes"}  # as the plots of scores against memory call them
_MOST_NOTES = 6


@dataclass(frozen=True)
class Grid:
    """Lines × columns at one setting (`keys` without a task) on one axis; cells as text, with intervals."""

    keys: Mapping[str, str]
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]


def grids(study: Study) -> tuple[list[Grid], str]:
    """One grid for each setting and axis; or none, and why."""
    if not any(row.full for row in study.rows) or all(row.full for row in study.rows):
        return [], ""
    pooled = groups(list(dict.fromkeys(row.setting.task for row in study.rows)), study.kinds)
    try:
        return [grid for axis in AXES for grid in _grids(study, axis, pooled)], ""
    except ValueError as error:  # two versions of a task: every other part of the page can still be read
        return [], units.clean(str(error))


def _grids(study: Study, axis: str, pooled: Mapping[str, Sequence[str]]) -> list[Grid]:
    """Tables by all tasks, by kind and by task, side by side."""
    lines = {row.recipe: row.line for row in study.rows}
    kinds = {task: name for name, members in pooled.items() if name != ALL for task in members}
    every = dict.fromkeys(pooled.get(ALL, ()), ALL)
    found = [
        critical.tables(study.facts, Question(axis=axis, lines=lines, categories=categories))
        for categories in [*filter(None, (every, kinds)), {}]
    ]
    return [_grid(parts) for parts in zip(*found, strict=True)]


def _grid(parts: Sequence[critical.Table]) -> Grid:
    """`parts` are tables of one scope, the last one by task."""
    last = parts[-1]
    columns, bodies = [], []
    for part in parts:
        new = [n for n, name in enumerate(part.columns) if part is last or name not in last.columns]
        columns += [part.columns[n] for n in new]
        bodies.append({row[0]: [row[1:][n] for n in new] for row in part.rows()})
    lines = tuple((line, tuple(cell for body in bodies for cell in body[line])) for line in bodies[-1])
    keys = {key: units.clean(str(value)) for key, value in last.scope._asdict().items()} | {"measure": AXES[last.axis]}
    return Grid(keys, tuple(columns), lines, _notes(last.notes))


def _notes(found: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know, each kind of it once."""
    few = [note for note in found if note.endswith("it says little")]
    told = [note for note in found if note not in few and not note.startswith("reading alone")]
    more = len(told) - _MOST_NOTES
    told = told[:_MOST_NOTES] + ([f"… and {more} more"] if more > 0 else [])
    return (*told, *([f"{len(few)} numbers rest on fewer than 4 samples: they say little"] if few else []))
