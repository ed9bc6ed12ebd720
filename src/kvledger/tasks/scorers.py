"""Scorers: extraction apart from matching, pure `(prediction, golds) -> float` in [0, 1].

Each task has two.  The right one reads the answer out of the prediction and compares it whole.  The legacy one gives
SCBench's number (microsoft/MInference, `scbench/`, commit fb56c91), with its defects, so that results can be compared:
a substring anywhere for keys and strings, extra names for free in multi-hop, any occurrence of a letter for many-shot.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from kvledger.tasks.metrics import f1, harmonic, normalise

Golds = tuple[str, ...]
Scorer = Callable[[str, Golds], float]


READ = 100_000  # characters of a prediction that are looked at: what a model rambles on about is not its answer


def first_string(prediction: str) -> str:
    """What the prediction answers with: a quoted string that opens it or follows its lead-in, else its last word.

    Only the first line that has text counts: what a model rambles on about afterwards is not its answer.
    """
    line = first_line(prediction)
    quoted = re.search(r'"([^"]*)"|“([^”]*)”|`([^` ]+)`$', line)
    if quoted:
        return next(group for group in quoted.groups() if group is not None)
    words = line.rsplit(": ", 1)[-1].split()
    if not words:
        return ""
    lead_in = re.search(r"\b(?:is|are|was)\b[:\s]+(\S+)", line)
    return (lead_in.group(1) if lead_in else words[0]).rstrip(".,;\"'")


def first_line(prediction: str) -> str:
    """The first line that has text, stripped."""
    return next((line.strip() for line in prediction[:READ].splitlines() if line.strip()), "")


def numbers(prediction: str) -> list[str]:
    """Whole numbers with their sign, not parts of words or of decimals; `2nd` and `3rd` are not among them."""
    return re.findall(r"(?<![\w.])-?\d+(?![\w]|\.\d)", prediction[:READ].replace(",", " "))


def letter(prediction: str, labels: str = "ABCDEFG") -> str:
    """The label answered: a lone `(C)` first, else after "answer is", else the first lone capital; '' if none."""
    wanted = f"[{labels}]"
    prediction = " ".join(prediction[:READ].split())  # long runs of blanks would cost their square below
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
    return list(dict.fromkeys(w for w in re.findall(r"\b[A-Z]{2,}\b", prediction[:READ]) if w != "VAR"))


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
    for line in prediction[:READ].splitlines():
        if found := numbers(line):
            return float(_plain(found[-1]) in {_plain(gold) for gold in golds})
    return 0.0


def _plain(number: str) -> str:
    """Without leading zeros; a number of a million digits is compared, not computed."""
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    return sign + (digits.lstrip("0") or "0") if digits.strip("0") else "0"


def one_letter(prediction: str, golds: Golds) -> float:
    """1 if the label read out of the prediction is the gold."""
    return float(letter(prediction) in golds)


def choice(prediction: str, golds: Golds) -> float:
    """1 if the label read out of the prediction is golds[0], or, where it has no label, its first line is or holds golds[1],
    the text of that option."""
    line, text = f" {normalise(first_line(prediction))} ", f" {normalise(golds[1])} "
    if line == text:
        return 1.0
    label = letter(prediction, "ABCD")
    return float(label == golds[0]) if label else float(text in line)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CJK = str.maketrans(
    "",
    "",
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、〃》「」『』【】〔〕〖〗〝〞–—‘’‛“”„…‧﹏.",
)


def _f1(said: Sequence[str], meant: Sequence[str]) -> float:
    return harmonic(sum((Counter(said) & Counter(meant)).values()), len(said), len(meant))


def token_f1(prediction: str, golds: Golds) -> float:
    """F1 between the words of the first line and those of the nearest gold (InfiniteBench's own score of En.QA)."""
    return f1(first_line(prediction), golds)


def characters(text: str) -> str:
    """Lower case without blanks and without ASCII and CJK punctuation."""
    return "".join(text.lower().split()).translate(_PUNCTUATION).translate(_CJK)


def character_f1(prediction: str, golds: Golds) -> float:
    """F1 between the characters of the first line and those of the nearest gold, for Chinese."""
    said = characters(first_line(prediction))
    return max(_f1(said, characters(gold)) for gold in golds)


def facts(prediction: str, golds: Golds) -> float:
    """Share of the facts golds[1:] that stand as whole words in the prediction, of which as many words count as twice the
    reference golds[0] has: copying the text brings nothing."""
    room = 2 * len(golds[0].split())
    said = f" {normalise(' '.join(prediction[: 40 * room].split()[:room]))} "
    return sum(f" {normalise(fact)} " in said for fact in golds[1:]) / len(golds[1:])


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
    return float(found is not None and len(found.group()) < 20 and float(found.group()) == int(golds[0]))


def legacy_letter(prediction: str, golds: Golds) -> float:
    """SCBench many_shot: any character of the gold occurs anywhere in the upper-cased output."""
    return float(any(character.upper() in prediction.upper() for character in golds[0]))


def legacy_answer(prediction: str, golds: Golds) -> float:
    """SCBench qa_eng: the gold occurs somewhere, case ignored."""
    return float(golds[0].upper() in prediction.upper())


def legacy_chinese(prediction: str, golds: Golds) -> float:
    """SCBench qa_chn: character F1, the best over the "golds" of a string, which are its characters."""
    said = characters(prediction)
    return max((_f1(said, characters(gold)) for gold in golds[0]), default=0.0)


def legacy_choice(prediction: str, golds: Golds) -> float:
    """SCBench choice_eng: a first character A to D decides; else the option's text alone, or after "answer is"; else the first
    word that is a letter A to D."""
    said, right = prediction.strip(), (golds[1], golds[0])
    if not said or said[0] in "ABCD":
        return float(said[:1] in right)
    if said in right:
        return 1.0
    for mark in "\n\"'.,?!{}":
        said = said.replace(mark, " ")
    said = re.sub(" {2,}", " ", said)
    for lead in ("answer is:", "answer:", "answer is", "option is"):
        _, found, after = said.partition(lead)
        if found:
            return float(after[1:].startswith(right))
    return float(next((word in right for word in said.split() if word in "ABCD"), False))


def legacy_passkey(prediction: str, golds: Golds) -> float:
    """SCBench's pass keys: the first run of digits is the gold."""
    found = re.search(r"\d+", prediction)
    return float(found is not None and found.group() == golds[0])


def mixed(letters: Scorer, strings: Scorer) -> Scorer:
    """The scorer of a mix: a gold of one character is a label, a longer one a string."""

    def score(prediction: str, golds: Golds) -> float:
        return (letters if len(golds[0]) == 1 else strings)(prediction, golds)

    return score


def mixed_numbers(number: Scorer, other: Scorer) -> Scorer:
    """The scorer of a mix of pass keys and summaries: a gold of digits is a pass key."""

    def score(prediction: str, golds: Golds) -> float:
        return (number if golds[0].isdigit() else other)(prediction, golds)

    return score


def mixed_lines(function: Scorer, string: Scorer) -> Scorer:
    """The scorer of a mix of functions and values: a gold of several lines, or one with rivals, is a function."""

    def score(prediction: str, golds: Golds) -> float:
        return (function if len(golds) > 1 or "\n" in golds[0] else string)(prediction, golds)

    return score
