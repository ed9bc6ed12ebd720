"""Tasks: text in, score out. The registry, and how names and suites are looked up."""

from __future__ import annotations

from difflib import get_close_matches

from kvledger.tasks.base import Sample, Segment, Task, Turn
from kvledger.tasks.scbench import ROWS

__all__ = ["TASKS", "Sample", "Segment", "Task", "Turn", "get", "suite"]

TASKS: dict[str, Task] = {task.name: task for task in ROWS}


def get(name: str) -> Task:
    """The task of that name. ValueError, with the nearest names, if there is none."""
    if name not in TASKS:
        raise ValueError(_unknown("task", name, list(TASKS)))
    return TASKS[name]


def suite(name: str) -> tuple[Task, ...]:
    """All tasks of a suite (`scbench`), or the one task of that name. ValueError if it is neither."""
    if name in TASKS:
        return (TASKS[name],)
    found = tuple(task for task in TASKS.values() if task.suite == name)
    if not found:
        raise ValueError(_unknown("task or suite", name, [*TASKS, *dict.fromkeys(t.suite for t in TASKS.values())]))
    return found


def _unknown(kind: str, name: str, choices: list[str]) -> str:
    near = get_close_matches(name, choices, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}choices: {', '.join(choices)}"
