"""Jobs: what one worker plays in one go, and who gets which.  (no torch until recipes are looked at)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from kvledger.recipe import parse
from kvledger.records import Cell, Record

PIECES = 4  # jobs for each worker at least, where there are recipes to divide: so that all end at about the same time
TOGETHER = 16  # answers that are written at once, unless somebody says otherwise
ANSWER = 300  # a turn's cost in read tokens, more or less: single tokens are dear


@dataclass(frozen=True)
class Job:
    """Cells on sample `index` of one task, played in one go: what they read alike is read once. `done`: turns that are on
    record, by the cell's key."""

    cells: tuple[Cell, ...]
    index: int
    done: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def less(self, told: Iterable[Record]) -> Job:
        """Without the turns of these records."""
        done = dict(self.done)
        for record in told:
            done[record.cell] = done.get(record.cell, frozenset()) | {record.turn}
        return replace(self, done=done)

    @property
    def turns(self) -> int:
        return sum(cell.turns for cell in self.cells)

    @property
    def reused(self) -> int:
        """Turns that need not be played."""
        return sum(min(cell.turns, len(self.done.get(cell.key, ()))) for cell in self.cells)

    @property
    def cost(self) -> float:
        """About, in tokens that are read: of the context once for the recipes that share it, and of the answers."""
        readings = {("" if _shares(cell.recipe) else cell.recipe, cell.visibility) for cell in self.cells}
        context = self.cells[0].context
        return len(readings) * context * (1 + context / 65536) + ANSWER * (self.turns - self.reused)

    @property
    def answers(self) -> int:
        """How many can be written at once: a conversation's one after the other, requests side by side."""
        return sum(1 if c.mode == "multi-turn" else c.turns - len(self.done.get(c.key, ())) for c in self.cells)

    def __str__(self) -> str:
        return f"{self.cells[0].task}, sample {self.index} ({len(self.cells)} cells)"


@dataclass(frozen=True)
class Bundle:
    """Jobs that one worker plays at a time, so that their answers share forwards."""

    jobs: tuple[Job, ...]

    def less(self, told: Sequence[Record]) -> Bundle:
        """Without the turns of these records."""
        keys = [{cell.key for cell in job.cells} for job in self.jobs]
        return Bundle(
            tuple(
                job.less(record for record in told if record.sample == job.index and record.cell in mine)
                for job, mine in zip(self.jobs, keys)
            )
        )

    def __str__(self) -> str:
        return " and ".join(map(str, self.jobs))


def bundled(jobs: Iterable[Job], answers: int, most: int) -> list[Bundle]:
    """Neighbours in the list, at most `most` of them, as far as they have up to `answers` to write at once."""
    bundles: list[Bundle] = []
    room = 0
    for job in jobs:
        room -= job.answers
        if not bundles or room < 0 or len(bundles[-1].jobs) >= most:
            bundles.append(Bundle(()))
            room = answers - job.answers
        bundles[-1] = Bundle((*bundles[-1].jobs, job))
    return bundles


@lru_cache(maxsize=4096)
def _shares(recipe: str) -> bool:
    from kvledger.hf.reading import shares

    return shares(parse(recipe))


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """One for each task, context length and sample. Samples outside: a run that is stopped early has compared all recipes on
    what it has seen."""
    groups: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.task, cell.context].append(cell)
    return [
        Job(mine, index)
        for index in range(max(cell.samples for cell in cells))
        for group in groups.values()
        if (mine := tuple(cell for cell in group if index < cell.samples))
    ]


def share(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """The part-th of `parts` shares (from 1) of about the same cost, whoever asks and whatever is on record by then."""
    if parts == 1:
        return list(jobs)
    load, mine = [0.0] * parts, []
    for job in longest_first(jobs, parts):
        lightest = load.index(min(load))
        load[lightest] += job.cost
        if lightest == part - 1:
            mine.append(job)
    return mine


def undone(jobs: Iterable[Job], done: Mapping[tuple[str, int], set[int]]) -> list[Job]:
    """What is left of jobs; `done`: turns on record by (cell, sample)."""
    left = []
    for job in jobs:
        have = {cell.key: frozenset(done.get((cell.key, job.index), ())) for cell in job.cells}
        if cells := tuple(cell for cell in job.cells if len(have[cell.key]) < cell.turns):
            left.append(Job(cells, job.index, {cell.key: have[cell.key] for cell in cells if have[cell.key]}))
    return left


def longest_first(jobs: Sequence[Job], workers: int) -> list[Job]:
    """For several workers: jobs divided by their recipes where they are few, and the dear ones first."""
    pieces = -(-PIECES * workers // max(1, len(jobs)))
    return sorted((piece for job in jobs for piece in _divided(job, pieces)), key=lambda job: -job.cost)


def _divided(job: Job, pieces: int) -> Iterator[Job]:
    """By recipes; those that share a reading stay together as far as that can be."""
    recipes = sorted(dict.fromkeys(cell.recipe for cell in job.cells), key=lambda recipe: not _shares(recipe))
    size = -(-len(recipes) // pieces)
    for start in range(0, len(recipes), size):
        mine = recipes[start : start + size]
        yield replace(job, cells=tuple(cell for cell in job.cells if cell.recipe in mine))
