"""Tasks: text in, score out. The registry, and how names, suites and users' own files are looked up."""

from __future__ import annotations

from difflib import get_close_matches

from kvledger.tasks import custom, helmet, longproc, ruler, sandbox, scbench, suites
from kvledger.tasks.base import Sample, Segment, Task, Turn, Unfit
from kvledger.tasks.suites import TIERS

__all__ = ["TASKS", "TIERS", "Sample", "Segment", "Task", "Turn", "Unfit", "get", "suite"]

TASKS: dict[str, Task] = {task.name: task for task in (*scbench.ROWS, *helmet.ROWS, *longproc.ROWS, *ruler.ROWS)}


def get(name: str) -> Task:
    """The task of that name, or of that file if it ends in .jsonl. ValueError, with the nearest names, if there is none."""
    if name.endswith(custom.SUFFIX):
        return custom.task(name)
    if name not in TASKS:
        raise ValueError(_unknown("task", name, list(TASKS)))
    return TASKS[name]


def suite(name: str, real: bool = False) -> tuple[Task, ...]:
    """The tasks of a suite (`scbench`), those with published data if `real`, else those that can be generated; or the one task
    of that name. ValueError if it is neither, or if the task or the whole suite cannot be had that way. Tasks that run what a
    model wrote are left out of suites, and refused by name, unless that is allowed (`sandbox`)."""
    if name in TASKS or name.endswith(custom.SUFFIX):
        return (_had(get(name), real),)
    known = suites.names(TASKS.values())
    if name not in known:
        raise ValueError(_unknown("task or suite", name, [*TASKS, *known]))
    if found := suites.members(name, TASKS.values(), real):
        return found
    raise ValueError(
        f"no task of the suite {name!r} {'has published data' if real else 'can be generated: give --data'}"
    )


def _had(task: Task, real: bool) -> Task:
    """The task, if it can be had that way; users' own files always can."""
    if task.runs_code:
        sandbox.check()
    if task.suite == custom.SUITE or (task.real if real else task.make) is not None:
        return task
    if real:
        raise ValueError(f"{task.name} is generated and has no published data: leave --data away for it")
    alike = f", or take {task.name}_alike, which is generated" if f"{task.name}_alike" in TASKS else ""
    raise ValueError(f"{task.name} cannot be generated: give --data hub or --data DIR{alike}")


def _unknown(kind: str, name: str, choices: list[str]) -> str:
    near = get_close_matches(name, choices, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}choices: {', '.join(choices)}"
