"""Shared joinery of the generators: a text that knows its spans, depths spread over turns, and sizing by bisection.

The rules of a rebuilt SCBench set (arXiv 2412.10319; the authors published no generator): the context grows until it
fills a token budget; the things asked for lie in different depth bins, and the bins are dealt to the turns at random,
so that neither the first nor the last question is systematically about the start of the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvledger.tasks.base import CountTokens, Form, Role, Sample, Segment, Turn

Span = tuple[int, int]
Build = Callable[[random.Random, int, int, Form], Sample]
"""`build(rng, size, turns, form)`: one sample with `size` units of context (pairs, strings, sentences, numbers, shots)."""


@dataclass
class Draft:
    """A text under construction. `add` returns the character span it took in the finished text."""

    segments: list[Segment] = field(default_factory=list)
    length: int = 0
    _pieces: list[str] = field(default_factory=list)
    _role: Role = "instruction"

    def add(self, role: Role, text: str) -> Span:
        if role != self._role:
            self._close()
            self._role = role
        self._pieces.append(text)
        start, self.length = self.length, self.length + len(text)
        return start, self.length

    def sample(self, task: str, turns: list[Turn]) -> Sample:
        self._close()
        placed = [replace(turn, depth=turn.evidence[0][0] / self.length if turn.evidence else 0.0) for turn in turns]
        return Sample(task=task, index=0, segments=tuple(self.segments), turns=tuple(placed))

    def _close(self) -> None:
        if self._pieces:
            self.segments.append(Segment(self._role, "".join(self._pieces)))
            self._pieces.clear()


def stratify(rng: random.Random, places: int, turns: int) -> list[int]:
    """One of `places` per turn: a random one from each of `turns` equal depth bins, dealt to the turns at random."""
    picks = [min(int(places * (bin_ + rng.random()) / turns), places - 1) for bin_ in range(turns)]
    rng.shuffle(picks)
    return picks


def fit(build: Callable[[int], Sample], least: int, tokens: int, count: CountTokens) -> Sample:
    """The sample of the largest size whose text has at most `tokens` tokens, found by doubling and then bisection."""
    best = build(least)
    if count(best.text) > tokens:
        raise ValueError(f"{tokens} tokens are too few: the smallest context has {count(best.text)}")
    low, high = least, least * 2
    while count((trial := build(high)).text) <= tokens:
        best, low, high = trial, high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        trial = build(middle)
        if count(trial.text) <= tokens:
            best, low = trial, middle
        else:
            high = middle
    return best


def maker(task: str, build: Build, least: Callable[[int], int]) -> Callable[..., Sample]:
    """`Task.make` from a generator. `least(turns)` is the smallest size that can hold that many questions."""

    def make(seed: int, index: int, tokens: int, count: CountTokens, turns: int = 5, form: Form = "small") -> Sample:
        if turns < 1:
            raise ValueError(f"turns must be at least 1, not {turns}")
        if form not in ("small", "full"):
            raise ValueError(f"form must be 'small' or 'full', not {form!r}")

        def sized(size: int) -> Sample:
            return build(random.Random(f"{task} {form} {seed} {index}"), size, turns, form)

        return replace(fit(sized, least(turns), tokens, count), index=index)

    return make
