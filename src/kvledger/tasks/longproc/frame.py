"""What LongProc's generators share: tiers of answer length, problems in a numbered list, tags.

LongProc (arXiv 2501.05414) is one question per prompt, with an answer of about 0.5K, 2K or 8K tokens.  A generated context
grows by further problems of the same kind (or by cities, or by the rest of a page), one of which is asked for by number;
with a single problem it has the published shape.  The instructions are ours; the published ones come with the real data.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from kvledger.tasks.base import Form, Sample
from kvledger.tasks.draft import Draft, Span, maker, roomy, stratify

Tier = Literal["0.5k", "2k", "8k"]
CAPS: dict[Tier, int] = {"0.5k": 1024, "2k": 3072, "8k": 10240}
"""Tokens an answer may have, as HELMET sets them."""


def capped(name: str, tier: Tier, build: Callable[..., Sample], least: Callable[[int], int]) -> Callable[..., Sample]:
    """`Task.make`: as `draft.maker`; answers may have the published length, or the reference's where that is longer."""

    def limited(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        sample, limit = build(rng, size, turns, form), CAPS[tier] if form == "full" else 0
        return replace(sample, turns=tuple(replace(turn, max_new_tokens=limit) for turn in sample.turns))

    return roomy(maker(name, limited, least))


def seeded(rng: random.Random) -> random.Random:
    """A generator of its own, so that what is drawn from it does not move with the size of the context."""
    return random.Random(rng.getrandbits(64))


def numbered(
    draft: Draft, rng: random.Random, asked: list[str], size: int, other: Callable[[], str]
) -> tuple[list[int], list[Span]]:
    """Adds `size` problems, of which the `asked` ones lie in different depth bins, under "Problem 3" headings unless there is
    one alone. The numbers of the asked ones and their spans."""
    places = dict(zip(stratify(rng, size, len(asked)), range(len(asked)), strict=True))
    numbers, spans = [0] * len(asked), [(0, 0)] * len(asked)
    for number in range(size):
        mine = places.get(number)
        if size > 1:
            draft.add("context", f"Problem {number + 1}\n")
        span = draft.add("context", other() if mine is None else asked[mine])
        draft.add("context", "\n\n")
        if mine is not None:
            numbers[mine], spans[mine] = number + 1, span
    return numbers, spans


def tagged(text: str, tag: str) -> str | None:
    """What stands between the first `<tag>` and the first `</tag>`, stripped; None where one is missing (LongProc's rule)."""
    start, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return None if start < 0 or end < 0 else text[start + len(tag) + 2 : end].strip()
