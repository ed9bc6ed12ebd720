"""What a task hands over: a shared context and the questions asked of it. Text only, no tensors.

A `Sample` is one context made of `Segment`s with roles, and the `Turn`s that are asked about it.  A `Task` is the row
of the registry: how samples are made, and how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Role = Literal["instruction", "demos", "context"]
Form = Literal["small", "full"]
CountTokens = Callable[[str], int]
Score = Callable[[str, tuple[str, ...]], float]


@dataclass(frozen=True)
class Segment:
    """A stretch of the shared prompt. `role` lets a method protect or ignore it."""

    role: Role
    text: str


@dataclass(frozen=True)
class Turn:
    """One question. `gold` is what the history shows as the answer, `golds` what the scorer accepts or looks for.

    `evidence` are character spans [start, end) in `Sample.text` that hold what the answer needs; `depth` is where the
    first of them lies, as a fraction of the text.
    """

    question: str
    gold: str
    golds: tuple[str, ...]
    max_new_tokens: int
    evidence: tuple[tuple[int, int], ...] = ()
    depth: float = 0.0
    subtask: str = ""


@dataclass(frozen=True)
class Sample:
    """A shared context and its turns. `text` is what is read once; the turns share it."""

    task: str
    index: int
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Task:
    """A row of the registry: `kvledger tasks` prints it, the runner calls `make` and `score`.

    `make(seed, index, tokens, count, turns, form)` returns one Sample whose text has at most `tokens` tokens by `count`
    and as close to it as the generator's grain allows.  The same arguments give the same Sample.
    """

    name: str
    suite: str
    capability: str
    metric: str
    make: Callable[..., Sample]
    score: Score
    legacy: Score
    chance: float
    offline: bool = True
    source: str = ""
