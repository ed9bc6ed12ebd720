"""Sources: what is made of a context before it is read, in a text that is shorter (SCBench's stage "generation").

The question, the chat template and later turns are none of a source's business, so nothing of them is ever taken out.  What is
left is read like any context: positions are those of the shorter text.  The ledger's full cache is that of the whole context.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Shape
from kvledger.recipe import Row

Span = tuple[int, int]


@dataclass(frozen=True)
class Judged:
    """The n tokens of a text: the characters [start, end) of each, and `surprise` [n] float32, its self-information in nats:
    −ln p(token | the tokens before it), +inf where there is none before it."""

    spans: Sequence[Span]
    surprise: Tensor


Judge = Callable[[str, int], Judged]
"""`judge(text, window)`: by the loaded model, each token given at least the window / 2 before it, if there are so many."""


@dataclass(frozen=True, kw_only=True)
class Shortener:
    """Frame of the sources that take out parts of the context. keep: the fraction of its tokens to keep, in (0, 1]."""

    keep: float = 0.5

    row: ClassVar[Row]
    role: ClassVar[str] = "source"
    shortens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is outside (0, 1]: it is the kept fraction")

    @property
    def must_drop(self) -> bool:
        """Whether any context loses something."""
        return self.keep < 1

    def shorten(self, text: str, protected: Sequence[Span], judge: Judge) -> tuple[str, list[Span]]:
        """The text to read instead, and where the spans `protected`, none of which may lose a character, lie in it."""
        raise NotImplementedError

    def fit(self, shape: Shape) -> None:
        """ValueError if the source cannot serve."""


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same characters as `spans`, in order and apart from each other."""
    found: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def joined(text: str, kept: Sequence[Span], protected: Sequence[Span]) -> tuple[str, list[Span]]:
    """The characters `kept` (in order, apart), one piece after the other, and where the spans `protected`, each of which is
    inside what is kept, lie then."""
    starts = [start for start, _ in kept]
    lengths = [0, *accumulate(end - start for start, end in kept)]

    def moved(place: int) -> int:
        i = bisect_right(starts, place) - 1
        return lengths[i] + min(place - starts[i], lengths[i + 1] - lengths[i])

    return "".join(text[a:b] for a, b in kept), [(moved(a), moved(b - 1) + 1) for a, b in protected if a < b]
