"""The search for critical footprints: what to measure next is `critical.search`'s to say, here it is played.

Every evaluation is a Cell in the same records as a grid's, so a search resumes, and uses what a grid has left.  What it asks
for follows from what it was told, never from how fast or in which order things were played, so a search that was killed and
started again takes the same course to the same answer.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvledger.critical.points import Point, point
from kvledger.critical.search import Aim, Step, next_step
from kvledger.recipe import Recipe, name_of, parse
from kvledger.records import Cell, Log, Record, claim, read
from kvledger.run.cell import Host, play
from kvledger.run.fitting import left_out
from kvledger.run.host import prepare
from kvledger.run.sweep import Grid

FULL = "full"


@dataclass(frozen=True)
class Search:
    """What `kvledger critical` asks for. `grid` has one mode, visibility and context, the recipes without the `keep` that is
    searched, and as many samples as one budget may take. `columns`: name -> tasks that are judged as one. `step`: between the
    budgets of the ladder. `axis`: see `critical.points.AXES`."""

    grid: Grid
    columns: Mapping[str, tuple[str, ...]]
    aim: Aim
    step: float = 0.05
    axis: str = "entries"

    @property
    def keeps(self) -> tuple[float, ...]:
        """The ladder, ascending."""
        return tuple(round(i * self.step, 9) for i in range(1, round(1 / self.step)))


@dataclass
class Quest:
    """One recipe on one column: its ladder, and the samples asked for at each place of it. `end`: why it is over."""

    line: str
    column: str
    tasks: tuple[str, ...]
    ladder: tuple[str, ...]
    asked: dict[int, int] = field(default_factory=dict)
    points: dict[int, Point] = field(default_factory=dict)
    end: str = ""


Conversation = tuple[Cell, int]  # and the sample's number


@dataclass
class Field:
    """What is known and how more is learned: records by cell and sample, and what this search has made use of."""

    host: Host
    cells: Mapping[tuple[str, str], Cell]  # (recipe, task)
    log: Log
    heard: dict[tuple[str, int], dict[int, Record]]
    warn: Callable[[str], None]
    together: int = 1  # answers that are written at once
    used: dict[tuple[str, int], None] = field(default_factory=dict)
    unfit: dict[tuple[str, int], None] = field(default_factory=dict)  # (cell, sample): it cannot be played

    def records(self, recipe: str, task: str, samples: int) -> list[Record]:
        key = self.cells[recipe, task].key
        return [r for i in range(samples) for _, r in sorted(self.heard[key, i].items())]

    def learn(self, wanted: Iterable[Conversation], watch: Callable[[Record], None]) -> int:
        """Play what is not on record, samples outside so that recipes share a reading; returns the turns played."""
        by_sample: dict[tuple[str, int], dict[str, Cell]] = defaultdict(dict)
        for cell, index in wanted:
            if index >= cell.samples or (cell.key, index) in self.unfit:
                continue
            self.used[cell.key, index] = None
            if len(self.heard[cell.key, index]) < cell.turns:
                by_sample[cell.task, index][cell.recipe] = cell
        pairs = ((cell, index) for (_, index), cells in sorted(by_sample.items()) for cell in cells.values())
        return self._play({(cell, index): set(self.heard[cell.key, index]) for cell, index in pairs}, watch)

    def _play(self, wanted: Mapping[Conversation, set[int]], watch: Callable[[Record], None]) -> int:
        played = 0
        for told in play(wanted, self.host, self.together):
            if isinstance(told, Record):
                self.log.append(told)
                self.heard[told.cell, told.sample][told.turn] = told
                watch(told)
                played += 1
            else:  # of this sample (too long), or of this budget (protected rows do not fit)
                self.unfit[told.cell.key, told.index] = None
                self.warn(f"{told.cell.recipe} on {told.cell.task}, sample {told.index}: {told.error}")
        return played


def ladder(text: str, keeps: Iterable[float]) -> tuple[str, ...]:
    """The recipe at each `keep`. ValueError for one that has nothing to search, or names the `keep` already."""
    recipe = parse(text)
    named = _says_keep(text)
    open_parts = [i for i, part in enumerate(recipe.parts) if not named[i] and _by_keep(part)]
    if len(open_parts) != 1:
        raise ValueError(
            f"{text!r}: keep is what is searched, so one part must leave it out, and {len(open_parts)} do"
            + (" (a budget in rows or bytes, or the full cache, has no keep)" if not open_parts else ": fix the others")
        )
    at = open_parts[0]
    return tuple(
        str(Recipe((*recipe.parts[:at], replace(recipe.parts[at], keep=keep), *recipe.parts[at + 1 :])))
        for keep in keeps
    )


def _by_keep(part: object) -> bool:
    """Whether `keep` is the part's budget."""
    others = any(bool(getattr(part, name, 0)) for name in ("rows", "bytes"))
    return hasattr(part, "keep") and name_of(part) != FULL and not others


def _says_keep(text: str) -> list[bool]:
    """Of each part of a readable recipe: whether it names its `keep`."""

    def terms(node: ast.expr) -> list[ast.expr]:
        return [*terms(node.left), *terms(node.right)] if isinstance(node, ast.BinOp) else [node]

    parts = terms(ast.parse(text.strip(), mode="eval").body)
    return [isinstance(part, ast.Call) and any(option.arg == "keep" for option in part.keywords) for part in parts]


def quests(search: Search) -> list[Quest]:
    """Every recipe on every column, all checked. ValueError for what cannot be searched."""
    if len(search.keeps) < 2:
        raise ValueError(f"step={search.step} leaves no ladder of budgets: it must be at most 1/3, like 0.05")
    lines = {text: ladder(text, search.keeps) for text in dict.fromkeys(search.grid.recipes) if text != FULL}
    if not lines:
        raise ValueError("there is nothing to search: name a recipe beside the full cache, which is always played")
    return [
        Quest(text, column, tasks, steps) for column, tasks in search.columns.items() for text, steps in lines.items()
    ]


def open_field(search: Search, goals: list[Quest], out: Path, warn: Callable[[str], None]) -> Field:
    """The model, every cell that may be asked for, and what is on record. ValueError before the first forward, also for
    records of other versions or weights."""
    recipes = (FULL, *dict.fromkeys(recipe for goal in goals for recipe in goal.ladder))
    tasks = tuple(dict.fromkeys(task for goal in goals for task in goal.tasks))
    grid = replace(search.grid, recipes=recipes, tasks=tasks)
    host, cells = prepare(grid, wanted := grid.cells())
    for line in left_out(wanted, cells):
        raise ValueError(line)
    claim(out, host.identity)
    have, damaged = read(out)
    for line in damaged:
        warn(line)
    heard: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
    for record in have:
        heard[record.cell, record.sample][record.turn] = record
    return Field(host, {(cell.recipe, cell.task): cell for cell in cells}, Log(out), heard, warn, search.grid.together)


def pursue(search: Search, goals: list[Quest], known: Field, watch: Callable[[Record], None]) -> int:
    """Round by round, one step of each quest that is not over, until all are; returns the turns played."""
    played = 0
    while steps := _steps(search, goals):
        played += known.learn(
            ((known.cells[recipe, task], i) for goal, step in steps for recipe in (FULL, goal.ladder[step.place])
             for task in goal.tasks for i in range(step.samples)),
            watch,
        )  # fmt: skip
        for goal, step in steps:
            goal.asked[step.place] = step.samples
            found = _measure(goal, step, known, search.axis)
            if found is None:
                goal.end = f"no sample could be played and scored with {goal.ladder[step.place]}"
            else:
                goal.points[step.place] = found
    return played


def _steps(search: Search, goals: list[Quest]) -> list[tuple[Quest, Step]]:
    """The next one of each quest; those that are over are told why."""
    steps = []
    for goal in goals:
        if not goal.end:
            step = next_step(goal.points, len(goal.ladder), search.aim)
            if isinstance(step, Step):
                steps.append((goal, step))
            else:
                goal.end = step
    return steps


def _measure(goal: Quest, step: Step, known: Field, axis: str) -> Point | None:
    """What the records say, if anything. `samples` are those asked for, though not all of them may have a score."""
    recipe = goal.ladder[step.place]
    parts = [
        (known.records(recipe, task, step.samples), known.records(FULL, task, step.samples)) for task in goal.tasks
    ]
    found = point(parts, axis)
    return None if found is None else replace(found, samples=step.samples)
