"""Tasks about the whole text: SCBench's Math.Find, ICL.ManyShot and a Mix, rebuilt (arXiv 2412.10319).

Math.Find: SCBench draws 30,000 three-digit numbers uniformly, so its six answers are known without reading; here each
row has its own range and the ranks asked for are planted.  ManyShot: random words carry random labels, so nothing but
the shots can tell (they stand in for salient translation errors, which are natural text); the full form has dates and
tracked objects too (`puzzles.py`).  Mix follows SCBench's Mix.RepoQA+KV: key-value pairs lie between the parts of another task.
"""

from __future__ import annotations

import random

from kvledger.tasks import puzzles
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.retrieval import KV_IS, kv_turn
from kvledger.tasks.words import SYLLABLES, distinct, identifier, letters, syllables

MF_INSTRUCTION = "Read the list of numbers below.\n\n"
MF_ASK, MF_END = "\n\nYou should answer with only one number, no other words. The ", " number of the list is "
MF_NEXT = ", "
RANKS = ("largest", "second largest", "third largest", "smallest", "second smallest", "third smallest")
SMALL_RANKS = ("largest", "second largest", "smallest", "second smallest")
COPIES, RARITY = 4, 48  # in the small form a planted rank occurs so often, or once in so many numbers; else once
VALUES = 12  # different values between the planted ones, in the small form

MS_INSTRUCTION = "Learn from the examples which label each word carries.\n\n"
MS_IS, MS_STOP = " -> (", ")\n"
MS_ASK, MS_END = "\n\nWord: ", "\nThe label is: "
LABELS = "ABCDEF"
SHOTS_PER_WORD = 4
MIX_INSTRUCTION = "Read the labelled words and the key-value pairs below.\n\n"
MIX_OPEN, MIX_CLOSE = '"', '"\n'


def mf(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` numbers from a range of this row; a question asks for one of the outermost values.

    Ranks count different values.  The planted values are the outermost ones and the bulk stays inside.
    """
    ranks = SMALL_RANKS if form == "small" else RANKS
    planted, bulk = _values(rng, ranks, form)
    copies = max(1, min(COPIES, size // (2 * len(ranks))), size // RARITY) if form == "small" else 1
    numbers = [rng.choice(bulk) for _ in range(size)]
    slots = rng.sample(range(size), copies * len(ranks)) if form == "small" else stratify_apart(rng, size, len(ranks))
    for place, slot in enumerate(slots):
        numbers[slot] = planted[ranks[place % len(ranks)]]
    draft = Draft()
    draft.add("instruction", MF_INSTRUCTION)
    where: dict[int, list[Span]] = {}
    for i, value in enumerate(numbers):
        draft.add("context", MF_NEXT if i else "[")
        where.setdefault(value, []).append(draft.add("context", str(value)))
    draft.add("context", "]")
    order = [rank for _ in range(0, turns, len(ranks)) for rank in rng.sample(ranks, len(ranks))][:turns]
    return draft.sample("scbench/mf", [_mf_turn(rank, planted[rank], where[planted[rank]]) for rank in order])


def stratify_apart(rng: random.Random, places: int, count: int) -> list[int]:
    """Different places, one from each depth bin (there are at least as many places as bins)."""
    picks = [rng.randrange(places * b // count, places * (b + 1) // count) for b in range(count)]
    rng.shuffle(picks)
    return picks


def _values(rng: random.Random, ranks: tuple[str, ...], form: Form) -> tuple[dict[str, int], list[int]]:
    """Outermost values by rank, and those in between. Steps between ranks are random, so one rank tells no other."""
    low, high, least, step = (10, 99, 45, (4, 7)) if form == "small" else (100, 999, 300, (1, 9))
    width = rng.randint(least, high - low)
    bottom = rng.randint(low, high - width)
    planted: dict[str, int] = {}
    innermost: list[int] = []
    for side, sign, value in (("largest", -1, bottom + width), ("smallest", 1, bottom)):
        for rank in (rank for rank in ranks if rank.endswith(side)):
            value += sign * rng.randint(*step) if rank != side else 0
            planted[rank] = value
        innermost.append(value)
    bulk = range(innermost[1] + step[0], innermost[0] - step[0] + 1)
    return planted, rng.sample(bulk, min(VALUES, len(bulk))) if form == "small" else list(bulk)


def _mf_turn(rank: str, value: int, spans: list[Span]) -> Turn:
    return Turn(f"{MF_ASK}{rank}{MF_END}", str(value), (str(value),), 5, tuple(spans))


def many_shot(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` shots. A word carries one label in all of its shots; labels are dealt evenly. The full form is one of three tasks
    by turns of the seed, as SCBench takes three of BIG-Bench Hard: labelled words, dates, and objects that change hands."""
    if form == "full" and (kind := rng.choice(("words", "dates", "objects"))) != "words":
        return puzzles.many_shot(rng, size, turns, kind)
    draft = Draft()
    draft.add("instruction", MS_INSTRUCTION)
    shots = Shots(rng, size, form)
    for i in range(size):
        shots.add(draft, i)
    return draft.sample("scbench/many_shot", [shots.turn(word) for word in shots.asked(turns)])


class Shots:
    """Labelled words and their demonstrations. In the full form the labels are names and a shot lists them as options
    in an order of its own, as BIG-Bench Hard does; in the small form a shot gives the letter itself."""

    def __init__(self, rng: random.Random, size: int, form: Form) -> None:
        count = max(1, min(size // SHOTS_PER_WORD, 60 if form == "small" else size))
        self.rng, self.form = rng, form
        self.words = distinct(lambda: syllables(rng, 1 if form == "small" else 3), count)
        self.names = list(LABELS) if form == "small" else distinct(lambda: letters(rng, "aeioubdgklmnprst", 6), 6)
        deal = [self.names[i % len(LABELS)] for i in range(count)]
        rng.shuffle(deal)
        self.label = dict(zip(self.words, deal, strict=True))
        self.order = [self.words[i % count] for i in range(size)]
        rng.shuffle(self.order)
        self.spans: dict[str, list[Span]] = {}

    def add(self, draft: Draft, i: int) -> None:
        word = self.order[i]
        if self.form == "small":
            span = draft.add("demos", f"{word}{MS_IS}{self.label[word]}")
            draft.add("demos", MS_STOP)
        else:
            options, letter = self._options(word)
            span = draft.add("demos", f"Word: {word}\nOptions:\n{options}\nAnswer: ({letter})")
            draft.add("demos", "\n\n")
        self.spans.setdefault(word, []).append(span)

    def asked(self, turns: int) -> list[str]:
        """Words to ask, spread over the depth of their first shot."""
        by_depth = list(self.spans)
        return [by_depth[i] for i in stratify(self.rng, len(by_depth), turns)]

    def turn(self, word: str, subtask: str = "") -> Turn:
        if self.form == "small":
            question, letter = f"{MS_ASK}{word}{MS_END}", self.label[word]
        else:
            options, letter = self._options(word)
            question = f"\n\nWord: {word}\nOptions:\n{options}\nAnswer: "
        return Turn(
            question, letter, (letter,), 10 if self.form == "full" else 4, tuple(self.spans[word]), 0.0, subtask
        )

    def _options(self, word: str) -> tuple[str, str]:
        order = self.rng.sample(self.names, len(self.names))
        return "\n".join(f"({c}) {name}" for c, name in zip(LABELS, order, strict=True)), LABELS[
            order.index(self.label[word])
        ]


def mix(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` shots with a key-value pair after every second one; questions of both kinds take turns."""
    draft = Draft()
    draft.add("instruction", MIX_INSTRUCTION)
    shots = Shots(rng, size, form)
    taken = set(SYLLABLES) | set(shots.words)
    pairs: list[tuple[str, str, Span]] = []
    for i in range(size):
        shots.add(draft, i)
        if i % 2:
            key, value = distinct(lambda: identifier(rng, form, size), 2, taken)
            draft.add("context", MIX_OPEN)
            pairs.append((key, value, draft.add("context", f"{key}{KV_IS}{value}")))
            draft.add("context", MIX_CLOSE)
    return draft.sample("scbench/mix", _alternate(rng, shots, pairs, turns, form))


def _alternate(
    rng: random.Random, shots: Shots, pairs: list[tuple[str, str, Span]], turns: int, form: Form
) -> list[Turn]:
    words = shots.asked((turns + 1) // 2)
    keys = [pairs[i] for i in stratify(rng, len(pairs), (turns + 1) // 2)]
    both = [[kv_turn(*pair, form, "kv"), shots.turn(word, "many_shot")] for pair, word in zip(keys, words, strict=True)]
    first = rng.randrange(2)
    return [turn for two in both for turn in (two if first else two[::-1])][:turns]
