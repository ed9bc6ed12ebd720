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


CLOSE = 128  # of a long text, so much of the budget may stay free: the last steps cost a count of the whole text each
LONG = 16_384  # tokens


def fit(build: Callable[[int], Sample], least: int, tokens: int, count: CountTokens) -> Sample:
    """The sample of the largest size whose text has at most `tokens` tokens, found by interpolation between sizes; of a long
    text, one that is about 1/128 below it."""
    best = build(least)
    low, used = least, count(best.text)  # the size known to fit, and its tokens
    high = over = 0  # the size known not to, and its tokens
    if used > tokens:
        raise ValueError(f"{tokens} tokens are too few: the smallest context has {used}")
    rate, trials = used / least, 0  # tokens per unit of size
    while not high or high - low > 1:
        if tokens > LONG and (tokens - used < tokens // CLOSE or 0 < high - low <= low // CLOSE):
            break
        trials += 1
        if high:
            between = int((high - low) * (tokens - used) / (over - used)) if trials % 4 else (high - low) // 2
            size = low + min(max(1, between), high - low - 1)
        else:
            size = low + max(1, min(int((tokens - used) / rate), 15 * low))
        trial = build(size)
        taken = count(trial.text)
        slope = (taken - used) / (size - low)
        rate = slope if slope > 0.2 * used / low else used / low  # a step or two can even lose tokens
        if taken <= tokens:
            best, low, used = trial, size, taken
        else:
            high, over = size, taken
    return best


def maker(
    task: str, build: Build, least: Callable[[int], int], least_full: Callable[[int], int] | None = None
) -> Callable[..., Sample]:
    """`Task.make` from a generator. `least(turns)` is the smallest size that can hold that many questions, in the full form
    `least_full(turns)`."""
    smallest = {"small": least, "full": least_full or least}

    def make(seed: int, index: int, tokens: int, count: CountTokens, turns: int = 5, form: Form = "small") -> Sample:
        if turns < 1:
            raise ValueError(f"turns must be at least 1, not {turns}")
        if form not in ("small", "full"):
            raise ValueError(f"form must be 'small' or 'full', not {form!r}")

        def sized(size: int) -> Sample:
            return build(random.Random(f"{task} {form} {seed} {index}"), size, turns, form)

        return replace(fit(sized, smallest[form](turns), tokens, count), index=index)

    return make


MARGIN = 16  # tokens that an answer may be longer than the gold one


def roomy(make: Callable[..., Sample]) -> Callable[..., Sample]:
    """`make`, with room for the gold answer and `MARGIN` tokens more where a turn's own limit is less."""

    def made(seed: int, index: int, tokens: int, count: CountTokens, turns: int = 5, form: Form = "small") -> Sample:
        sample = make(seed, index, tokens, count, turns, form)
        limits = (max(turn.max_new_tokens, count(turn.gold) + MARGIN) for turn in sample.turns)
        return replace(
            sample, turns=tuple(replace(turn, max_new_tokens=n) for turn, n in zip(sample.turns, limits, strict=True))
        )

    return made
