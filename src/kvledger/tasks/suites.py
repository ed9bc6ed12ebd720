"""Suites of tasks by name, and tiers: how many samples of each, by which rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from kvledger.tasks import sandbox
from kvledger.tasks.base import Task

PRULONG = "prulong"  # the 21 data sets of arXiv 2506.17121 in 8 categories, from HELMET and LongProc
GENERATED = 100  # samples of a full tier where no number of rows was published


@dataclass(frozen=True)
class Tier:
    """`samples` of each task (0: all that were published), and the rule in words, which a cell keeps."""

    name: str
    samples: int

    def count(self, rows: int) -> int:
        """Samples of a task with so many published rows (0: generated, any number)."""
        wanted = self.samples or rows or GENERATED
        return min(wanted, rows) if rows else wanted

    @property
    def rule(self) -> str:
        many = f"the first {self.samples}" if self.samples else f"all rows, or the first {GENERATED} where generated"
        return f"{self.name}: {many}, in the order of the task's own rule and the seed"


TIERS: dict[str, Tier] = {tier.name: tier for tier in (Tier("quick", 10), Tier("standard", 50), Tier("full", 0))}


def names(tasks: Iterable[Task]) -> list[str]:
    """The names of all suites."""
    found = dict.fromkeys(task.suite for task in tasks)
    return [*found, *([PRULONG] if any(task.category for task in tasks) else [])]


def members(name: str, tasks: Iterable[Task], real: bool) -> tuple[Task, ...]:
    """The tasks of a suite: those with published data if `real`, else those that are generated; those that run what a model
    wrote only where that is allowed."""
    within = [task for task in tasks if (task.category if name == PRULONG else task.suite == name)]
    had = (task for task in within if (task.real if real else task.make) is not None)
    return tuple(task for task in had if not task.runs_code or sandbox.allowed())


LEGEND = (
    "made: generated offline; data: with --data hub or DIR. A suite is what stands before the slash, or prulong. Tasks scored "
    f"in a sandbox run what the model wrote, and only where {sandbox.SWITCH}=1 allows it."
)


def facts(task: Task) -> dict[str, object]:
    """Everything that is said of a task, for `kvledger tasks --json`."""
    calls = ("make", "real", "score", "legacy")
    said = {field.name: getattr(task, field.name) for field in fields(task) if field.name not in calls}
    return {**said, "offline": task.offline, "published": task.real is not None}


def shown(task: Task) -> dict[str, object]:
    """A line of the table that `kvledger tasks` prints."""
    lengths = [f"{length / 1e6:.1f}M" if length >= 1e6 else f"{length // 1000}K" for length in sorted(task.lengths)]
    return {
        "task": task.name,
        "metric": task.metric,
        "turns": task.turns,
        "tokens": "–".join(dict.fromkeys((lengths[0], lengths[-1]))) if lengths else "",
        "chance": task.chance,
        "guess": task.baseline,
        "samples": "both" if task.make and task.real else "made" if task.make else "data",
        "licence": task.licence,
        "source": task.source,
    }
