"""Look-alike of HELMET's re-ranking data (arXiv 2410.02694): MS MARCO's graded passages, with made-up towns and their goods.

Deviations: a label is how many of the three goods that a query names a passage offers, where MS MARCO's were judged by
people; several queries share a context; a gold ranking has the ten labelled passages, and demonstrations have four instead of
ten; the small form has none.
"""

from __future__ import annotations

import random

from kvledger.tasks import facts
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span
from kvledger.tasks.helmet.templates import RERANK_ASK, RERANK_TASK, ranked_passage
from kvledger.tasks.overall import stratify_apart
from kvledger.tasks.words import distinct, syllables

GRADES = (3, 3, 2, 2, 2, 1, 1, 1, 1, 1)  # labels of the passages that a query finds; all others have 0
SHOWN_GRADES = (3, 2, 1, 0)
FEATURES = 4  # a passage's, of which a query asks for three
WANTED = 3
GOODS = (
    "salt", "wool", "glass", "honey", "tin", "paper", "rope", "cheese", "barley", "copper", "linen", "clocks", "candles",
    "bells", "leather", "pottery", "cider", "amber", "nails", "baskets", "lace", "ink", "plums", "horses", "soap", "bricks",
    "violins", "maps", "mustard", "herring", "silver", "chairs", "knives", "tar", "butter", "flutes", "apples", "geese",
)  # fmt: skip
MOST_QUERIES = (len(GOODS) - FEATURES) // WANTED


def rerank(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` passages, ten of them labelled for each query; a passage has a label for one query only."""
    queries, rest = _goods(rng, turns, form)
    labels, ids = _graded(rng, size, turns), _ids(rng, size)
    towns = facts.names(rng, size, form, set())
    draft = Draft()
    draft.add("instruction", RERANK_TASK)
    if form == "full":
        draft.add("demos", "".join(_demo(rng) for _ in range(2)))
    spans: list[Span] = []
    for i, (query, label) in enumerate(labels):
        offered = rng.sample(queries[query], label) + rng.sample(rest, FEATURES - label)
        draft.add("context", "\n\n" if i else "")
        spans.append(draft.add("context", ranked_passage(ids[i], _offer(rng, towns[i], offered, form))))
    asked = []
    for number, wanted in enumerate(queries):
        own = [(label, ids[i], spans[i]) for i, (query, label) in enumerate(labels) if query == number and label]
        asked.append(_turn(wanted, sorted(own, key=lambda one: -one[0]), form))
    return draft.sample("helmet/rerank_alike", asked)


def _turn(wanted: list[str], found: list[tuple[int, str, Span]], form: Form) -> Turn:
    """`found`: label, id and span of the labelled passages, best first."""
    golds = tuple(f"{id_}:{label}" for label, id_, _ in found)
    gold = " > ".join(id_ for _, id_, _ in found)
    spans = tuple(sorted(span for _, _, span in found))
    return Turn(RERANK_ASK.format(question=_query(wanted)), gold, golds, 80 if form == "small" else 200, spans)


def _goods(rng: random.Random, turns: int, form: Form) -> tuple[list[list[str]], list[str]]:
    """The goods that each query names, and those that none does."""
    if turns > MOST_QUERIES:
        raise ValueError(f"{turns} queries are more than there are goods for: ask for at most {MOST_QUERIES}")
    goods = rng.sample(GOODS, len(GOODS)) if form == "full" else distinct(lambda: syllables(rng, 1), len(GOODS))
    return [goods[WANTED * i : WANTED * (i + 1)] for i in range(turns)], goods[WANTED * turns :]


def _ids(rng: random.Random, size: int) -> list[str]:
    """Different numbers from a range that they scarcely fill: an id that was not read is hardly ever right."""
    least = 1000 if size <= 4000 else 100_000
    return [str(i) for i in rng.sample(range(least, 10 * least), size)]


def _graded(rng: random.Random, size: int, turns: int) -> list[tuple[int, int]]:
    """(query, label) of each passage: ten passages a query, spread over the depth, the others (0, 0)."""
    labels = [(0, 0)] * size
    marks = [(query, label) for query in range(turns) for label in GRADES]
    rng.shuffle(marks)
    for slot, mark in zip(stratify_apart(rng, size, len(marks)), marks, strict=True):
        labels[slot] = mark
    return labels


def _offer(rng: random.Random, town: str, offered: list[str], form: Form) -> str:
    rng.shuffle(offered)
    if form == "small":
        return " ".join(offered)
    return f"The town of {town} is known for its {', '.join(offered[:-1])} and {offered[-1]}."


def _query(wanted: list[str]) -> str:
    return f"Who offers {', '.join(wanted[:-1])} and {wanted[-1]}?"


def _demo(rng: random.Random) -> str:
    """A few graded passages, a query, and the ranking that is right."""
    goods = rng.sample(GOODS, WANTED + FEATURES)
    ids = rng.sample(range(10, 100), len(SHOWN_GRADES))
    offers = [rng.sample(goods[:WANTED], n) + rng.sample(goods[WANTED:], FEATURES - n) for n in SHOWN_GRADES]
    towns = facts.names(rng, len(ids), "full", set())
    shown = [ranked_passage(str(i), _offer(rng, t, o, "full")) for i, t, o in zip(ids, towns, offers, strict=True)]
    rng.shuffle(shown)
    ranked = " > ".join(map(str, ids))
    return "\n\n".join(shown) + RERANK_ASK.format(question=_query(goods[:WANTED])) + f" {ranked}\n\n"
