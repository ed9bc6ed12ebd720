"""The critical footprint: the smallest one that keeps a fraction F of the full score (arXiv 2506.17121 §2.1).  (no torch)

`points.py` records to points of a curve with intervals · `crossing.py` where a curve reaches F · `search.py` which point to
measure next. Imports nobody, so that the runner and the report share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RULES = ("lowest", "lasting")  # which crossing of a curve that crosses more than once: see `crossing.py`
AXES = (
    "entries",
    "bytes",
    "peak",
    "stored",
)  # footprints of entries and of bytes, most entries at once, bytes at the question


@dataclass(frozen=True)
class Question:
    """How records are to be judged: F, the footprint, the rule. `categories`: task -> category, of all tasks that there are
    ({}: one answer a task). `lines`: recipe -> line of the table ({}: by method)."""

    target: float = 0.9
    axis: str = "entries"
    rule: str = "lowest"
    categories: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)

    def column(self, task: str) -> str:
        """Of the table: the task's category, or the task."""
        return self.categories.get(task, task)
