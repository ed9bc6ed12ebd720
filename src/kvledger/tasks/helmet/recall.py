"""HELMET's recall set (arXiv 2410.02694), generated: JSON-KV, and RULER's multi-key 2 and 3 and multi-value needles.

JSON-KV is random uuid pairs in one JSON object (after "Lost in the Middle", arXiv 2307.03172), so the generated set is the
published one's equal; the needles are RULER's (`tasks/ruler/niah.py` says how they differ), asked as HELMET does.
Deviations: keys asked for lie in depth bins instead of at six fixed depths; several questions share a context.  The small
form has syllables and the wording of `scbench/kv`, in HELMET's order: the object first, then the instruction.
"""

from __future__ import annotations

import random
from dataclasses import replace

from kvledger.tasks import facts, retrieval
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Build, Draft, Span, stratify
from kvledger.tasks.helmet.templates import KV_ASK, KV_DEMO
from kvledger.tasks.ruler.niah import Needles
from kvledger.tasks.words import distinct, identifier

DEMOS = 2  # unrelated pairs shown with each question of the full form


def json_kv(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` pairs of unique keys and values; a question names a key."""
    words = _identifiers(rng, 2 * (size + DEMOS), form)
    demos, pairs = words[: 2 * DEMOS], list(zip(words[2 * DEMOS :: 2], words[2 * DEMOS + 1 :: 2], strict=True))
    opening, is_, next_, close = _marks(form)
    draft = Draft()
    draft.add("context", opening)
    spans: list[Span] = []
    for i, (key, value) in enumerate(pairs):
        spans.append(draft.add("context", f"{key}{is_}{value}"))
        draft.add("context", next_ if i < size - 1 else close)
    shown = "".join(KV_DEMO.format(key=demos[2 * i], value=demos[2 * i + 1]) for i in range(DEMOS))
    asked = [_turn(*pairs[i], spans[i], shown, form) for i in stratify(rng, size, turns)]
    return draft.sample("helmet/json_kv", asked)


def needles(spec: Needles, cap: int) -> Build:
    """RULER's task with HELMET's line break before the answer cue, and its `cap` of new tokens, in the full form."""

    def build(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        made = spec.build(rng, size, turns, form)
        if form == "small":
            return made
        asked = (replace(t, question=t.question.replace("? The ", "?\nThe "), max_new_tokens=cap) for t in made.turns)
        return replace(made, turns=tuple(asked))

    return build


def _identifiers(rng: random.Random, count: int, form: Form) -> list[str]:
    """As `scbench/kv` has them; of the small form only so many are different, and a long object takes longer ones."""
    if form == "small" and count > facts.PLENTY:
        return facts.names(rng, count, form, set())
    return distinct(lambda: identifier(rng, form), count)


def _marks(form: Form) -> tuple[str, str, str, str]:
    if form == "small":
        return retrieval.KV_OPEN, retrieval.KV_IS, retrieval.KV_NEXT, retrieval.KV_CLOSE
    return '{"', '": "', '",\n "', '"}'


def _turn(key: str, value: str, span: Span, shown: str, form: Form) -> Turn:
    if form == "small":
        question = f"\n\n{retrieval.KV_INSTRUCTION}{retrieval.KV_ASK}{key}{retrieval.KV_END}"
        return Turn(question, value, (value,), 8, (span,))
    return Turn(KV_ASK.format(demos=shown, question=key), value, (value,), 100, (span,))
