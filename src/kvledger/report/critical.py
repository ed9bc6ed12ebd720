"""Records -> the critical footprints of all lines, by task or by category, in the layout of arXiv 2506.17121, Table 2.

Differences from the paper: every number has an interval; which crossing is meant has a name (`critical.crossing`); a category
of which a line lacks a task is marked, where the paper's code averages whichever results there are.  (no torch)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid

from kvledger.critical import Question
from kvledger.critical.crossing import Bound, Crossing, crossing
from kvledger.critical.points import Point, point
from kvledger.records import Record

FORMAT = "kvledger.critical/1"
PART, BLIND = "†", "–"
HEADS = {"entries": "entry footprint", "bytes": "byte footprint", "peak": "peak", "stored": "bytes stored"}
# arXiv 2506.17121, Table 2: Llama-3.1-8B-Instruct, chunks of 32K, F = 0.9
PAPER_MODEL, PAPER_CHUNK = "Llama-3.1-8B-Instruct", 32768
PAPER_COLUMNS = ("recall", "rag", "rerank", "icl", "longqa", "summ", "HTML to TSV", "Travel planning")
PAPER = {
    "DuoAttention": ("58", "49", "69", "49", "60", "63", "87", "91"),
    "PruLong": ("46", "37", "61", "38", "49", "59", "83", "93"),
    "PyramidKV, naive": (">93", "44", ">94", "42", "62", "53", "97", ">98"),
    "PyramidKV, patched": ("64", "<34", "94", "<36", "<35", "49", "97", ">98"),
}


class Scope(NamedTuple):
    """What one table holds fixed."""

    model: str
    mode: str
    visibility: str
    history: str
    context: int
    chunk: int


@dataclass(frozen=True)
class Entry:
    """One line in one column. `points` by recipe, from the smallest footprint; `found` is None where no ratio is defined;
    `missing` are tasks of the column that the line lacks."""

    line: str
    column: str
    found: Crossing | None
    points: tuple[tuple[str, Point], ...]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`64 [58, >93]` in percent of the full cache's footprint."""
        if self.found is None:
            return BLIND
        return f"{self.found.value} [{self.found.low}, {self.found.high}]" + (PART if self.missing else "")


@dataclass(frozen=True)
class Table:
    """Lines × columns in one scope, and what a reader must know."""

    scope: Scope
    axis: str
    target: float
    rule: str
    columns: tuple[str, ...]
    lines: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    notes: tuple[str, ...]

    def rows(self) -> list[list[str]]:
        """The body as text, first the line's name; the paper's rows below where they are of the same model and chunk."""
        body = [[line, *(self._cell(line, column) for column in self.columns)] for line in self.lines]
        same = self.scope.model.endswith(PAPER_MODEL) and self.scope.chunk == PAPER_CHUNK and self.target == 0.9
        if same and self.axis == "entries" and set(self.columns) <= set(PAPER_COLUMNS):
            where = [PAPER_COLUMNS.index(column) for column in self.columns]
            body += [[f"{name} (paper)", *(cells[i] for i in where)] for name, cells in PAPER.items()]
        return body

    def _cell(self, line: str, column: str) -> str:
        return str(self.entries[line, column]) if (line, column) in self.entries else BLIND

    @property
    def title(self) -> str:
        s = self.scope
        read = f"read in chunks of {s.chunk}" if s.chunk else "read in one shot"
        return (
            f"{s.model} · {s.context} tokens {read} · {s.mode}, question {s.visibility} · smallest {HEADS[self.axis]} (% of "
            f"the full cache's) with {100 * self.target:g} % of its score [95 % interval], {self.rule} crossing"
        )


Answers = dict[str, list[Record]]  # by task


def tables(records: Iterable[Record], question: Question) -> list[Table]:
    """One table for each scope. ValueError for records of two versions of a task, which are not to be mixed."""
    facts = list(records)
    _check_one_version(facts)
    scopes: dict[Scope, list[Record]] = defaultdict(list)
    for record in facts:
        if not _is_full(record):
            scopes[_scope(record)].append(record)
    full = _full_answers(facts)
    return [_table(scope, group, full, question) for scope, group in scopes.items()]


def _scope(record: Record) -> Scope:
    return Scope(*(getattr(record, name) for name in Scope._fields))


def _is_full(record: Record) -> bool:
    return record.recipe == "full"


def _check_one_version(facts: Sequence[Record]) -> None:
    golds: dict[tuple[object, ...], Record] = {}
    for r in facts:
        release = r.versions.split(",")[0]
        first = golds.setdefault((r.model, r.task, r.context, r.seed, r.sample, r.turn), r)
        if first.gold != r.gold:
            raise ValueError(
                f"two versions of {r.task}: sample {r.sample}, turn {r.turn} asks for {first.gold[:40]!r} in one record and "
                f"for {r.gold[:40]!r} in another; keep runs with different questions in different folders"
            )
        if (other := first.versions.split(",")[0]) != release:
            raise ValueError(f"two versions of {r.task}, of {other} and of {release}: play it anew in another folder")


def _full_answers(facts: Iterable[Record]) -> dict[Scope, Answers]:
    answers: dict[Scope, Answers] = defaultdict(lambda: defaultdict(list))
    for record in filter(_is_full, facts):
        answers[_scope(record)][record.task].append(record)
    return answers


def _baseline(scope: Scope, task: str, full: Mapping[Scope, Answers]) -> list[Record]:
    """The full cache's answers in this scope; else of another visibility or chunk size, which decide what is dropped, and it
    drops nothing."""
    alike = [s for s in full if s._replace(visibility=scope.visibility, chunk=scope.chunk) == scope and task in full[s]]
    return full[min(alike, key=lambda s: s != scope)][task] if alike else []


def _table(scope: Scope, group: Sequence[Record], full: Mapping[Scope, Answers], question: Question) -> Table:
    tasks = list(dict.fromkeys(r.task for r in group))
    columns = {
        c: tuple(t for t in tasks if question.column(t) == c) for c in dict.fromkeys(map(question.column, tasks))
    }
    by_line: dict[str, dict[str, Answers]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in group:
        by_line[question.lines.get(r.recipe, r.method)][r.recipe][r.task].append(r)
    entries = {}
    for line, recipes in by_line.items():
        for column, wanted in columns.items():
            entry = _entry(line, column, wanted, recipes, {t: _baseline(scope, t, full) for t in wanted}, question)
            if entry is not None:
                entries[line, column] = entry
    notes = (*_notes(entries, columns, question), *_floor(by_line, question.axis))
    return Table(
        scope, question.axis, question.target, question.rule, tuple(columns), tuple(by_line), entries, notes
    )  # fmt: skip


def _entry(
    line: str,
    column: str,
    wanted: Sequence[str],
    recipes: Mapping[str, Answers],
    full: Mapping[str, list[Record]],
    question: Question,
) -> Entry | None:
    """A point for each recipe that has all the tasks that the line has at all. None if it has none of the column's."""
    has = [task for task in wanted if any(task in answers for answers in recipes.values())]
    found = {
        recipe: point([(answers[task], full[task]) for task in has], question.axis)
        for recipe, answers in recipes.items()
        if has and all(task in answers for task in has)
    }
    points = sorted(((r, p) for r, p in found.items() if p is not None), key=lambda item: item[1].footprint)
    where = crossing([p for _, p in points], question.target, question.rule)
    missing = tuple(task for task in wanted if task not in has)
    return Entry(line, column, where, tuple(points), missing) if has else None


def _notes(
    entries: Mapping[tuple[str, str], Entry], columns: Mapping[str, Sequence[str]], question: Question
) -> list[str]:
    notes = []
    for (line, column), entry in entries.items():
        if entry.missing:
            notes.append(f"{PART} {line} on {column} is without {', '.join(entry.missing)}")
        if not entry.points:
            notes.append(f"{BLIND} {line} on {column}: no full cache on the same samples, or no finite score")
        elif entry.found is None:
            notes.append(f"{BLIND} {line} on {column}: the full cache scores nothing, so there is no ratio")
        if lost := sum(p.left_out for _, p in entry.points):
            notes.append(f"{line} on {column}: {lost} turns without a finite score are left out")
    notes += _few(entries)
    for column, tasks in columns.items():
        absent = sorted(t for t, c in question.categories.items() if c == column and t not in tasks)
        if absent:
            notes.append(
                f"{column} has {len(absent)} more tasks that were not run: {', '.join(absent[:4])}{' …' * (len(absent) > 4)}"
            )
    return list(dict.fromkeys(notes))


def _few(entries: Mapping[tuple[str, str], Entry]) -> list[str]:
    """Which entries rest on too few samples; one line for many alike."""
    resting: dict[int, list[str]] = defaultdict(list)
    for (line, column), entry in entries.items():
        few = max((p.samples for _, p in entry.points), default=99)
        if few < 4 and entry.found is not None:
            resting[few].append(f"{line} on {column}")
    if sum(map(len, resting.values())) > 4:
        return [
            f"{len(xs)} of {len(entries)} entries rest on {few} samples: they say little" for few, xs in resting.items()
        ]
    return [f"{x} rests on {few} sample{'s' * (few > 1)}: it says little" for few, xs in resting.items() for x in xs]


def _floor(lines: Mapping[str, Mapping[str, Answers]], axis: str) -> list[str]:
    """What reading alone costs each line, by the size of its chunks and when it drops: no budget can be below that."""
    if axis != "entries":
        return []
    floors = {
        line: fmean(r.floor for answers in recipes.values() for found in answers.values() for r in found)
        for line, recipes in lines.items()
    }
    return [f"reading alone costs {', '.join(f'{line} {100 * cost:.0f}' for line, cost in floors.items())} %"]


def show(records: Iterable[Record], question: Question, notes: Sequence[str] = (), as_json: bool = False) -> None:
    """Print the tables, and `notes` of how the records came about. ValueError where there is none to judge."""
    found = tables(records, question)
    if not found:
        raise ValueError("there is no record of a recipe that drops anything, so there is nothing to compare")
    if as_json:
        print(json.dumps({**document(found), "notes": list(notes)}, ensure_ascii=False))
        return
    print("\n".join([*(text(table) for table in found), *notes]))


def text(table: Table, width: int = 120) -> str:
    """For a terminal, without colour."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", *table.columns):
        grid.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in table.rows():
        grid.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(width=width, no_color=True, color_system=None)
    with console.capture() as capture:
        console.print(table.title, markup=False, soft_wrap=True)
        console.print(grid)
        for note in table.notes:
            console.print(note, markup=False, soft_wrap=True)
    return capture.get()


def markdown(table: Table) -> list[str]:
    """The lines of a Markdown table, and the notes below it."""
    head = [f"| | {' | '.join(table.columns)} |", "|---" * (1 + len(table.columns)) + "|"]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return [table.title, "", *head, *(f"| {' | '.join(row)} |" for row in table.rows()), *notes]


def document(found: Sequence[Table]) -> dict[str, Any]:
    """As JSON: every entry with its crossing, its interval and its points."""

    def bound(b: Bound) -> dict[str, Any]:
        return {"side": b.side, "value": b.value}

    def spot(recipe: str, p: Point) -> dict[str, Any]:
        ratio = None if p.ratio is None else [p.ratio.value, p.ratio.low, p.ratio.high]
        return {"recipe": recipe, "footprint": p.footprint, "score": p.score, "full": p.full, "samples": p.samples,
                "ratio": ratio}  # fmt: skip

    def entry(e: Entry) -> dict[str, Any]:
        ends = {} if e.found is None else {n: bound(getattr(e.found, n)) for n in ("value", "low", "high")}
        points = [spot(recipe, p) for recipe, p in e.points]
        return {"line": e.line, "column": e.column, "missing": list(e.missing), **ends, "points": points}

    return {
        "format": FORMAT,
        "tables": [
            {**t.scope._asdict(), "axis": t.axis, "target": t.target, "rule": t.rule,
             "entries": [entry(e) for e in t.entries.values()], "notes": list(t.notes)}
            for t in found
        ],
    }  # fmt: skip
