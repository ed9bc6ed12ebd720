"""A grid of cells, minus what the records hold already: played by whom `Staff` says, and written down here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import kvledger
from kvledger.recipe import nearest, parse
from kvledger.records import HISTORIES, MODES, VISIBILITIES, Cell, Log, Record, claim, read
from kvledger.run.cell import check
from kvledger.run.engine import Crew
from kvledger.run.fitting import left_out
from kvledger.run.host import Player
from kvledger.run.jobs import TOGETHER, Job, jobs_of, longest_first, share, undone
from kvledger.run.staff import Staff
from kvledger.tasks import TIERS, Task, suite
from kvledger.tasks.hub import Data


@dataclass(frozen=True)
class Grid:
    """What `kvledger run` asks for: every combination of the lists is a cell."""

    model: str
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    modes: tuple[str, ...] = ("multi-turn",)
    visibility: tuple[str, ...] = ("hidden",)
    context: tuple[int, ...] = (2048,)
    chunk: int = 512
    samples: int | None = None  # None: the tier's
    turns: int | None = None  # None: the task's own
    seed: int = 0
    history: str = "gold"
    form: str = "auto"
    tier: str = "quick"
    data: str = ""  # "hub" or a folder: published data instead of generated samples
    together: int = TOGETHER  # answers that are written at once; decides nothing but the time it takes

    def cells(self) -> list[Cell]:
        """All cells, recipes in canonical form, each checked. ValueError for the first that is impossible."""
        _check_names("mode", self.modes, MODES)
        _check_names("visibility", self.visibility, VISIBILITIES)
        _check_names("history", (self.history,), HISTORIES)
        _check_names("form", (self.form,), ("auto", "small", "full"))
        _check_names("tier", (self.tier,), tuple(TIERS))
        _check_counts(self)
        Data(self.data or "hub").check()
        tasks = {task.name: task for name in self.tasks for task in suite(name, bool(self.data))}
        recipes = list(dict.fromkeys(str(parse(recipe)) for recipe in self.recipes))
        cells = []
        for task, context, mode, visibility, recipe in product(
            tasks.values(), self.context, self.modes, self.visibility, recipes
        ):
            samples, rule = self._samples(task)
            cell = Cell(
                self.model, recipe, task.name, mode, visibility, context, self.chunk, self.turns or task.turns, samples,
                self.seed, self.history, "real" if self._real(task) else self.form, version=kvledger.__version__, rule=rule,
            )  # fmt: skip
            check(cell)
            cells.append(cell)
        return cells

    def _real(self, task: Task) -> bool:
        return bool(self.data) or task.make is None

    def _samples(self, task: Task) -> tuple[int, str]:
        """How many samples of a task, and by which rule."""
        rows, tier = task.rows if self._real(task) else 0, TIERS[self.tier]
        if self.samples is None:
            return tier.count(rows), tier.rule
        return min(self.samples, rows or self.samples), f"the first {self.samples}"


def _check_names(what: str, given: Sequence[str], choices: Sequence[str]) -> None:
    for name in given:
        if name not in choices:
            raise ValueError(f"unknown {what} {name!r}{nearest(name, choices)}")


def _check_counts(grid: Grid) -> None:
    for name, value in (("samples", grid.samples), ("turns", grid.turns), *(("context", c) for c in grid.context)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if grid.together < 1:
        raise ValueError(f"together={grid.together} must be at least 1")
    if grid.seed < 0:
        raise ValueError(f"seed={grid.seed} is negative")


@dataclass(frozen=True)
class Progress:
    """Told to whoever watches: turns done of all (of this shard), how many of them were on record, what has just been
    played, and by how many workers."""

    done: int
    total: int
    reused: int
    cell: Cell
    workers: int = 1


def sweep(
    grid: Grid, out: Path, watch: Callable[[Progress], None], warn: Callable[[str], None], staff: Staff | None = None
) -> int:
    """Play all cells of `grid` (or the staff's share of them) that `out` does not hold yet; returns the number of turns
    played. Everything that can be refused is refused before the first forward."""
    cells, staff = grid.cells(), staff or Staff()
    engine = staff.hire(partial(Player, grid, staff.devices > 1))
    with Crew(engine, warn) as crew:
        wanted, cells = cells, crew.resolve(cells)
        for line in left_out(wanted, cells):
            warn(line)
        done = known(out, warn)
        mine = share(jobs_of(cells), *staff.share)
        jobs = undone(mine, done)
        if jobs:
            claim(out, crew.identity)
        played = Played({cell.key: cell for cell in cells}, mine, jobs, engine.size)
        logs = Logs(out, lambda worker: staff.log(worker, engine.size))
        try:
            dealt = longest_first(jobs, engine.size) if engine.size > 1 else jobs
            for worker, told in crew.play(dealt, grid.together):
                if isinstance(told, Record):
                    logs[worker].append(told)
                    watch(played.one_more(told))
                else:
                    played.left_out.setdefault(told.text)
        finally:
            logs.close()
    return played.end(warn)


def known(out: Path, warn: Callable[[str], None]) -> dict[tuple[str, int], set[int]]:
    """(cell, sample) -> turns on record under `out`."""
    done: dict[tuple[str, int], set[int]] = defaultdict(set)
    have, damaged = read(out)
    for line in damaged:
        warn(line)
    for record in have:
        done[record.cell, record.sample].add(record.turn)
    return done


class Logs(dict[int, Log]):
    """A file for each worker, opened when it has something to write. `name` of a worker's number."""

    def __init__(self, out: Path, name: Callable[[int], str]):
        super().__init__()
        self.out, self.name = out, name

    def __missing__(self, worker: int) -> Log:
        self[worker] = Log(self.out, self.name(worker))
        return self[worker]

    def close(self) -> None:
        for log in self.values():
            log.close()


class Played:
    """The count of a sweep: of the jobs that are `mine`, some are on record and `jobs` are to be played."""

    def __init__(self, cells: dict[str, Cell], mine: Sequence[Job], jobs: Sequence[Job], workers: int):
        self.cells, self.workers, self.count = cells, workers, 0
        self.total = sum(job.turns for job in mine)
        self.reused = self.total - sum(job.turns - job.reused for job in jobs)
        self.left_out: dict[str, None] = {}

    def one_more(self, record: Record) -> Progress:
        self.count += 1
        return Progress(self.reused + self.count, self.total, self.reused, self.cells[record.cell], self.workers)

    def end(self, warn: Callable[[str], None]) -> int:
        """Says what was left out; returns the turns played. ValueError if there is no turn at all."""
        for line in self.left_out:
            warn(line)
        if self.left_out and not self.count + self.reused:
            raise ValueError(f"no sample could be played: {next(iter(self.left_out))}")
        return self.count
