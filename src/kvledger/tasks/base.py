"""What a task hands over: a shared context and the questions asked of it. Text only, no tensors.

A `Sample` is one context made of `Segment`s with roles, and the `Turn`s that are asked about it.  A `Task` is the row
of the registry: how samples are made, and how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kvledger.tasks.hub import Data

Role = Literal["instruction", "demos", "context"]
Form = Literal["small", "full", "real"]
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


class Unfit(ValueError):
    """One sample cannot be asked (its row is too long, or there is no such row); the others can."""


@dataclass(frozen=True)
class Task:
    """A row of the registry: `kvledger tasks` prints it, the runner calls `make` (or `real`) and `score`.

    `make(seed, index, tokens, count, turns, form)` returns one Sample whose text has at most `tokens` tokens by `count`
    and as close to it as the generator's grain allows.  The same arguments give the same Sample.
    `real(data, seed, index, tokens, count, turns)` does the same from published data (`hub.Data`), where there are any.
    `chance` is the score of an answer of the right shape that was picked without reading, `baseline` what the best guess
    without the context scores. `lengths` are the published context lengths in tokens, `turns` the questions a context has
    unless the user says otherwise, `category` one of the 8 of arXiv 2506.17121 where the task is among its 21, or looks
    like one of them. `runs_code` says that scoring runs what the model wrote, which has to be allowed (`sandbox`).
    """

    name: str
    suite: str
    capability: str
    metric: str
    make: Callable[..., Sample] | None
    score: Score
    legacy: Score
    chance: float
    baseline: float = 0.0
    source: str = ""
    licence: str = ""
    lengths: tuple[int, ...] = ()
    turns: int = 5
    category: str = ""
    real: Callable[..., Sample] | None = None
    rows: int = 0  # contexts that were published, 0 where there is no such number
    runs_code: bool = False

    @property
    def offline(self) -> bool:
        """Whether samples are generated, with no download."""
        return self.make is not None

    def sample(
        self,
        seed: int,
        index: int,
        tokens: int,
        count: CountTokens,
        turns: int,
        form: Form = "small",
        data: Data | None = None,
    ) -> Sample:
        """Sample `index`: from published `data` if `form` is "real", else generated. ValueError for what the task has not;
        `Unfit` for a row that this length or data set does not hold."""
        if form == "real":
            if self.real is None:
                raise ValueError(f"{self.name} is generated and has no published data; leave --data away for it")
            if data is None:
                raise ValueError(f"{self.name}: form 'real' needs data: --data hub, or a folder")
            return self.real(data, seed, index, tokens, count, turns)
        if self.make is None:
            raise ValueError(f"{self.name} cannot be generated; give --data hub or --data DIR")
        return self.make(seed=seed, index=index, tokens=tokens, count=count, turns=turns, form=form)
