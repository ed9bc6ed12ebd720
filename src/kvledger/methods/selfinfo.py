"""Selective Context (Li et al., 2023, arXiv 2310.06201; code MIT): what the model could have guessed need not be read.

The self-information of a token is −ln p(token | those before it) under a causal model; that of a lexical unit is the sum over
its tokens (§3.1, §3.2), and the units with the most stay, in their order (§3.3).  The model is the loaded one itself, so that
nothing is downloaded; it reads windows of the context without a cache, which costs a forward over twice as many tokens, but
never more memory than a window's.

Deviations: a budget in tokens, filled with whole units, takes the place of the percentile over units; units are words,
sentences or tokens, and the paper's noun phrases, which need a parser, are left out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from kvledger.methods.source import Judge, Shortener, Span, joined, merged
from kvledger.recipe import Row, nearest, register

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"  # scripts that put no blanks between words
FIRSTS = {
    "word": re.compile(rf"\s+(?=\S)|(?=[{HAN}])|(?<=[{HAN}])(?=\S)"),
    "sentence": re.compile(r"[.!?]\s+(?=\S)|\n\s*(?=\S)|[。！？]\s*(?=\S)"),
}
UNITS = (*FIRSTS, "token")


@register(Row("selfinfo", "generation", "text", "a forward", "arXiv 2310.06201", "words that could not be guessed"))
@dataclass(frozen=True, kw_only=True)
class SelfInfo(Shortener):
    """unit: what is kept or left out as one: "word" (with the blanks behind it), "sentence" or "token". window: tokens that are
    read together to be judged, each half of which is judged in view of the half before."""

    unit: str = "word"
    window: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r} is unknown{nearest(self.unit, UNITS)}")
        if self.window < 2:
            raise ValueError(f"window={self.window}: a token is judged by those before it, so 2 is the least")

    def shorten(self, text: str, protected: Sequence[Span], judge: Judge) -> tuple[str, list[Span]]:
        if self.keep >= 1 or not text.strip():
            return text, list(protected)
        judged = judge(text, self.window)
        firsts = units(text, self.unit, judged.spans)
        sizes, worth = [0] * len(firsts), [0.0] * len(firsts)
        for (start, end), surprise in zip(judged.spans, judged.surprise.tolist()):
            i = bisect_right(firsts, max(start, end - 1)) - 1  # a token may begin with the blank before its word
            sizes[i], worth[i] = sizes[i] + 1, worth[i] + surprise
        spans = list(zip(firsts, [*firsts[1:], len(text)]))
        stay = chosen(worth, sizes, _touched(spans, protected), max(1, floor(self.keep * sum(sizes) + 1e-9)))
        return joined(text, merged([spans[i] for i in stay]), protected)


def units(text: str, unit: str, tokens: Sequence[Span]) -> list[int]:
    """Where the units of a text begin; each goes on to the next."""
    if unit == "token":
        return sorted({0, *(start for start, end in tokens if start < end)})
    return sorted({0, *(match.end() for match in FIRSTS[unit].finditer(text))})


def chosen(worth: Sequence[float], sizes: Sequence[int], pinned: set[int], budget: int) -> list[int]:
    """The units that stay, in their order: the `pinned` ones, then those of most worth (the earlier of equals) as far as the
    tokens that are left will hold them whole; one in any case. ValueError if the pinned ones alone exceed the budget."""
    used = sum(sizes[i] for i in pinned)
    if used > budget:
        raise ValueError(
            f"{used} protected tokens do not fit the {budget} that selfinfo keeps: raise keep, or protect less"
        )
    order = sorted(set(range(len(worth))) - pinned, key=lambda i: (-worth[i], i))
    stay = set(pinned)
    for i in order:
        if used + sizes[i] <= budget:
            stay.add(i)
            used += sizes[i]
    return sorted(stay or order[:1])


def _touched(spans: Sequence[Span], protected: Sequence[Span]) -> set[int]:
    """Numbers of the spans (one after the other) that share a character with one of `protected`."""
    firsts = [start for start, _ in spans]
    found: set[int] = set()
    for start, end in protected:
        if start < end:
            found.update(range(bisect_right(firsts, start) - 1, bisect_right(firsts, end - 1)))
    return found
