"""RULER's scorers (NVIDIA/RULER, Apache-2.0) as `legacy`, and stricter ones: `(prediction, golds) -> [0, 1]`.

RULER counts which golds occur anywhere, parts of words included, and charges nothing for naming everything.  The right
ones compare whole values: one value must be the answer given, several are scored by F1, words by their share among the
first that are named.  All are linear in the prediction's length.
"""

from __future__ import annotations

import re

from kvledger.tasks.metrics import answer_in
from kvledger.tasks.scorers import Golds, first_line

TOKEN = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")
READ = 100_000  # characters; the longest list asked for has some hundred
ROOM = 3  # times the number of golds, so many different words are read as the answer


def string_match_all(prediction: str, golds: Golds) -> float:
    """RULER's score of all tasks but QA: the share of golds that occur in the prediction, case ignored.

    RULER first turns control characters into line ends; no gold has either, so that changes nothing.
    """
    said = prediction.lower()
    return sum(gold.lower() in said for gold in golds) / len(golds)


def string_match_part(prediction: str, golds: Golds) -> float:
    """RULER's score of QA: 1 if any of the golds occurs in the prediction, case ignored."""
    said = prediction.lower()
    return float(any(gold.lower() in said for gold in golds))


def answered(prediction: str, golds: Golds) -> float:
    """1 if one of the golds stands, in whole words, in the first line of the prediction that has text."""
    return answer_in(first_line(prediction), golds)


def value_set(prediction: str, golds: Golds) -> float:
    """F1 between the values named and the golds. Golds that are numbers are compared with numbers, others with codes of
    capitals: the words around them do not count."""
    named = {token for token in TOKEN.findall(prediction[:READ]) if _alike(token, golds[0])}
    hits = len(named & set(golds))
    return 2 * hits / (len(named) + len(set(golds))) if hits else 0.0


def _alike(token: str, gold: str) -> bool:
    return token.isdigit() if gold.isdigit() else token.isupper() and len(token) > 1


def words_named(prediction: str, golds: Golds) -> float:
    """Share of the golds among the first `3 · len(golds)` different words of the prediction; list numbers are no words."""
    words = dict.fromkeys(token.lower() for token in TOKEN.findall(prediction[:READ]) if not token.isdigit())
    named = set(list(words)[: ROOM * len(golds)])
    return sum(gold.lower() in named for gold in golds) / len(golds)
