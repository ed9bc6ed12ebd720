"""Look-alike of HELMET's many-shot ICL (arXiv 2410.02694): utterances labelled with integers that mean nothing.

A class is a pair of an action and a thing, so that neither word alone tells it, and each context numbers the classes anew.
As in HELMET, shots come in rounds that hold every class once, in an order of their own.  The utterance asked for is worded
as no shot is.
Deviations: utterances are made from patterns, not collected; several questions share a context.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.helmet.templates import ICL_ASK, ICL_SHOT, ICL_TASK
from kvledger.tasks.words import distinct, syllables

ACTIONS = ("cancel", "renew", "track", "insure", "repair", "return", "gift-wrap", "photograph")
THINGS = ("parcel", "passport", "bicycle", "garden lamp", "guitar", "library card")
SHOWN = (
    "please {a} my {t}", "could you {a} the {t} for me", "i would like to {a} a {t}", "how do i {a} my {t}",
    "is there a way to {a} this {t}", "my sister asked me to {a} her {t}", "what does it cost to {a} a {t}",
    "they told me you {a} any {t}", "i forgot to {a} the {t}", "who can {a} my {t}", "when will you {a} our {t}",
)  # fmt: skip
TAILS = (
    "",
    " today",
    " before friday",
    " as soon as possible",
    " while i am away",
    " if that is allowed",
    " again",
    " once more",
)
ASKED = ("i have been trying to {a} that {t} all week", "somebody ought to {a} the {t}")
SMALL = (3, 4)  # actions and things of the small form
CLASSES = {"small": SMALL[0] * SMALL[1], "full": len(ACTIONS) * len(THINGS)}


def icl(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` shots, the classes balanced; a question is an utterance of a class that was shown."""
    classes = _classes(rng, form)
    labels = rng.sample(range(len(classes)), len(classes))
    noise = distinct(lambda: syllables(rng, 1), 24) if form == "small" else []
    draft = Draft()
    draft.add("instruction", ICL_TASK)
    spans: dict[int, list[Span]] = {}
    for i, which in enumerate(rounds(rng, len(classes), size)):
        draft.add("demos", "\n\n" if i else "")
        shot = ICL_SHOT.format(text=_utterance(rng, classes[which], form, noise[:20]), label=labels[which])
        spans.setdefault(which, []).append(draft.add("demos", shot))
    seen = list(spans)
    asked = []
    for which in (seen[i] for i in stratify(rng, len(seen), turns)):
        text = _utterance(rng, classes[which], form, noise[20:], asked=True)
        gold = str(labels[which])
        asked.append(
            Turn(ICL_ASK.format(question=text), gold, (gold,), 6 if form == "small" else 20, tuple(spans[which]))
        )
    return draft.sample("helmet/icl_alike", asked)


def _classes(rng: random.Random, form: Form) -> list[tuple[str, str]]:
    words = distinct(lambda: syllables(rng, 1), sum(SMALL)) if form == "small" else []
    actions, things = (words[: SMALL[0]], words[SMALL[0] :]) if form == "small" else (ACTIONS, THINGS)
    return [(action, thing) for action in actions for thing in things]


def rounds(rng: random.Random, classes: int, size: int) -> Iterator[int]:
    """`size` classes in rounds: each round holds every class once, shuffled; the last one is cut."""
    for start in range(0, size, classes):
        yield from rng.sample(range(classes), classes)[: size - start]


def _utterance(rng: random.Random, which: tuple[str, str], form: Form, noise: list[str], asked: bool = False) -> str:
    if form == "small":
        return " ".join((which[0], rng.choice(noise), which[1]))
    pattern = rng.choice(ASKED if asked else SHOWN)
    return pattern.format(a=which[0], t=which[1]) + rng.choice(TAILS)
