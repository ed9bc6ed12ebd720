"""Scorers: extraction apart from matching, pure `(prediction, golds) -> float` in [0, 1].

Each task has two.  The right one reads the answer out of the prediction and compares it whole.  The legacy one gives
SCBench's number (microsoft/MInference, `scbench/`, commit fb56c91), with its defects, so that results can be compared:
a substring anywhere for keys and strings, extra names for free in multi-hop, any occurrence of a letter for many-shot.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Golds = tuple[str, ...]


def first_string(prediction: str) -> str:
    """What the prediction answers with: a quoted string that opens it or follows its lead-in, else its last word.

    Only the first line that has text counts: what a model rambles on about afterwards is not its answer.
    """
    lines = [line.strip() for line in prediction.splitlines() if line.strip()]
    line = lines[0] if lines else ""
    quoted = re.search(r'"([^"]*)"|“([^”]*)”|`([^` ]+)`$', line)
    if quoted:
        return next(group for group in quoted.groups() if group is not None)
    words = line.rsplit(": ", 1)[-1].split()
    if not words:
        return ""
    lead_in = re.search(r"\b(?:is|are|was)\b[:\s]+(\S+)", line)
    return (lead_in.group(1) if lead_in else words[0]).rstrip(".,;\"'")


def numbers(prediction: str) -> list[str]:
    """Whole numbers with their sign, not parts of words or of decimals; `2nd` and `3rd` are not among them."""
    return re.findall(r"(?<![\w.])-?\d+(?![\w]|\.\d)", prediction.replace(",", " "))


def letter(prediction: str, labels: str = "ABCDEFG") -> str:
    """The label answered: a lone `(C)` first, else after "answer is", else the first lone capital; '' if none."""
    wanted = f"[{labels}]"
    for pattern in (
        rf"(?i:(?:answer|label|option)(?:\s+is)?)\s*:?\s*\(?({wanted})\b",
        rf"\(({wanted})\)",
        rf"^\s*({wanted})\b(?!')",
        rf"\b({wanted})\s*[.)]?\s*$",
    ):
        if found := re.search(pattern, prediction):
            return found.group(1)
    return ""


def listed_names(prediction: str) -> list[str]:
    """The upper-case names of a list, in order and once each; `VAR` and short capitals at a sentence's start are none."""
    return list(dict.fromkeys(w for w in re.findall(r"\b[A-Z]{2,}\b", prediction) if w != "VAR"))


def exact_string(prediction: str, golds: Golds) -> float:
    """1 if the string answered is one of the golds, letter by letter."""
    return float(any(prediction.strip() == gold or first_string(prediction) == gold for gold in golds))


def name_set(prediction: str, golds: Golds) -> float:
    """F1 between the names listed and the golds: a missing name costs recall, an extra one precision."""
    named = listed_names(prediction)
    hits = len(set(named) & set(golds))
    return 2 * hits / (len(named) + len(golds)) if named else 0.0


def one_number(prediction: str, golds: Golds) -> float:
    """1 if the last number of the first line with a number is the gold: "The 2nd largest is 998" answers 998."""
    for line in prediction.splitlines():
        if found := numbers(line):
            return float(int(found[-1]) in {int(gold) for gold in golds})
    return 0.0


def one_letter(prediction: str, golds: Golds) -> float:
    """1 if the label read out of the prediction is the gold."""
    return float(letter(prediction) in golds)


def legacy_substring(prediction: str, golds: Golds) -> float:
    """SCBench kv, prefix_suffix: the gold occurs somewhere, case counts."""
    return float(any(gold in prediction for gold in golds))


def legacy_names(prediction: str, golds: Golds) -> float:
    """SCBench vt: fraction of golds that occur somewhere, case ignored, rounded to two decimals."""
    low = prediction.lower()
    return round(sum(gold.lower() in low for gold in golds) / len(golds), 2)


def legacy_number(prediction: str, golds: Golds) -> float:
    """SCBench mf: the first run of digits (perhaps a decimal) equals the gold; the sign is not seen."""
    found = re.search(r"\d+\.\d+|\d+", prediction)
    return float(found is not None and float(found.group()) == int(golds[0]))


def legacy_letter(prediction: str, golds: Golds) -> float:
    """SCBench many_shot: any character of the gold occurs anywhere in the upper-cased output."""
    return float(any(character.upper() in prediction.upper() for character in golds[0]))


def mixed(letters: Callable[[str, Golds], float], strings: Callable[[str, Golds], float]) -> Callable[..., float]:
    """The scorer of a mix: a gold of one character is a label, a longer one a string."""

    def score(prediction: str, golds: Golds) -> float:
        return (letters if len(golds[0]) == 1 else strings)(prediction, golds)

    return score
