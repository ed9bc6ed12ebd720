"""RULER's word counting: common words (cwe) and frequent words (fwe) (arXiv 2404.06654, section 3; NVIDIA's code, Apache-2.0,
none of it copied).

cwe: ten words occur thirty times, all others three times (six times and once below 4,096 tokens), in a numbered list after
a worked example.  fwe: coded words with counts ~ rank^-2, of which the first is noise ("..."); ranks 2 to 4 are asked for.
The `full` form has RULER's prompts and counts.  Deviations: the words are made of syllables, RULER's come from a package
and run out near 128K tokens; with several turns there is a list for each, and the question names it; the `small` form has
capitals, three words to find, six to one, no numbers and no example.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from kvledger.tasks.base import CountTokens, Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, maker
from kvledger.tasks.words import distinct, letters, syllables

BRIEF = 4096  # tokens; below, RULER counts common words six times and the others once
CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
CWE_ASK = (
    "\nQuestion: What are the {} most common words in {}? Answer: The top {} words that appear most often in {} are:"
)
FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
FWE_ASK = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
    "words in the above coded text{}? Answer: According to the coded text above, the three most frequently appeared words are:"
)
LOWER = "abcdefghijklmnopqrstuvwxyz"
ZETA_2 = math.pi**2 / 6
MANY = 8000  # words; beyond so many they get one syllable more


def cwe(brief: bool) -> Callable[[random.Random, int, int, Form], Sample]:
    """The generator for contexts below 4,096 tokens, or above: `size` words that are not common in each list."""
    often, seldom = (6, 1) if brief else (30, 3)

    def build(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        common, times = (3, (6, 1)) if form == "small" else (10, (often, seldom))
        draft = Draft()
        draft.add("instruction", "Remember which words are most common.\n\n" if form == "small" else CWE_HEAD)
        if form == "full":
            draft = Draft()
            draft.add("demos", _example(rng, brief))
            draft.add("instruction", CWE_HEAD)
        asked = []
        for turn in range(turns):
            words = distinct(lambda: _word(rng, size, form), common + size)
            shown = words[:common] * times[0] + words[common:] * times[1]
            spans = _listed(draft, rng, shown, set(words[:common]), turn, turns, numbered=form == "full")
            asked.append(_cwe_turn(sorted(words[:common], key=shown.index), spans, turn, turns, form))
        return draft.sample("ruler/cwe", asked)

    return build


def make_cwe(seed: int, index: int, tokens: int, count: CountTokens, turns: int = 5, form: Form = "small") -> Sample:
    """`Task.make`; the counts of the full form depend on whether there are 4,096 tokens."""
    return maker("ruler/cwe", cwe(tokens < BRIEF), lambda turns: 4)(seed, index, tokens, count, turns, form)


def _word(rng: random.Random, size: int, form: Form) -> str:
    word = syllables(rng, 2 + (size > MANY))
    return word if form == "small" else word.lower() + rng.choice("lmnrst")


def _listed(
    draft: Draft, rng: random.Random, shown: list[str], golds: set[str], turn: int, turns: int, numbered: bool
) -> tuple[Span, ...]:
    """Adds the words in random order, under a heading where there are several lists; the spans of the golds."""
    rng.shuffle(shown)
    if turns > 1:
        draft.add("context", f"{chr(10) if turn else ''}List {turn + 1}: ")
    pieces = [f"{i}. {word}" for i, word in enumerate(shown, 1)] if numbered else shown
    start, _ = draft.add("context", " ".join(pieces))
    spans = []
    for word, piece in zip(shown, pieces, strict=True):
        if word in golds:
            spans.append((start + len(piece) - len(word), start + len(piece)))
        start += len(piece) + 1
    return tuple(spans)


def _cwe_turn(golds: list[str], spans: tuple[Span, ...], turn: int, turns: int, form: Form) -> Turn:
    where = "the above list" if turns == 1 else f"list {turn + 1} above"
    if form == "small":
        part = "" if turns == 1 else f" of list {turn + 1}"
        return Turn(f"\n\nThe most common words{part} are ", " ".join(golds), tuple(golds), 16, spans)
    question = CWE_ASK.format(len(golds), where, len(golds), "the list" if turns == 1 else f"list {turn + 1}")
    return Turn(question, " " + _numbered(golds), tuple(golds), 120, spans)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def _example(rng: random.Random, brief: bool) -> str:
    """RULER's worked example: 20 words (3 times and once) or 40 (10 and 3 times), ten of them common."""
    words = distinct(lambda: _word(rng, 0, "full"), 20 if brief else 40)
    shown = words[:10] * (3 if brief else 10) + words[10:] * (1 if brief else 3)
    rng.shuffle(shown)
    ask = CWE_ASK.format(10, "the above list", 10, "the list")
    return f"{CWE_HEAD}{_numbered(shown)}{ask} {_numbered(words[:10])}\n"


def fwe(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` words before rounding, for each list: floor(size / (zeta(2) k^2)) of rank k."""
    draft = Draft()
    draft.add("instruction", "Remember which codes are most frequent.\n\n" if form == "small" else FWE_HEAD)
    asked = []
    for turn in range(turns):
        counts = [int(size / (ZETA_2 * k * k)) for k in range(1, int((size / ZETA_2) ** 0.5) + 1)]
        coded = distinct(lambda: syllables(rng, 2) if form == "small" else letters(rng, LOWER, 6), len(counts))
        golds = coded[1:4]
        shown = [word for word, many in zip(["...", *coded[1:]], counts, strict=True) for _ in range(many)]
        spans = _listed(draft, rng, shown, set(golds), turn, turns, numbered=False)
        asked.append(_fwe_turn(golds, spans, turn, turns, form))
    return draft.sample("ruler/fwe", asked)


def _fwe_turn(golds: list[str], spans: tuple[Span, ...], turn: int, turns: int, form: Form) -> Turn:
    if form == "small":
        part = "" if turns == 1 else f" of list {turn + 1}"
        return Turn(f"\n\nThe most frequent codes{part} are ", " ".join(golds), tuple(golds), 16, spans)
    part = "" if turns == 1 else f", list {turn + 1}"
    return Turn(FWE_ASK.format(part), " " + " ".join(golds), tuple(golds), 50, spans)
