"""Spans that no method may drop: compression that loses a single instruction, or the system prompt, answers another question.

Not a method but a part of a recipe: `snapkv(keep=0.3) + protect(instruction=True)`. Protected rows count against the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvledger.recipe import Row, register


@register(Row("protect", "compression", "token", "-", "-", "spans that stay whatever the method says"))
@dataclass(frozen=True, kw_only=True)
class Protect:
    """sinks: the first tokens. recent: the last ones. system: what the chat template puts before the context. instruction:
    segments of the context with the role "instruction". question: what was asked. evidence: what the answers need, known from
    the task itself; no method can know it, so this is an oracle, the ceiling of a comparison."""

    sinks: int = 0
    recent: int = 0
    system: bool = False
    instruction: bool = False
    question: bool = False
    evidence: bool = False

    row: ClassVar[Row]
    role: ClassVar[str] = "protection"

    def __post_init__(self) -> None:
        for name in ("sinks", "recent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if not any((self.sinks, self.recent, self.system, self.instruction, self.question, self.evidence)):
            raise ValueError(
                "protect() names nothing to protect: give sinks=, recent=, system=, instruction= or question="
            )
