"""Metrics that several benchmarks share: EM, SubEM, F1, ROUGE, NDCG@10. Pure `(prediction, golds) -> float` in [0, 1].

Sources: HELMET (arXiv 2410.02694; code MIT, commit 4526dfb), whose normalisation is that of SQuAD's script; ROUGE after
C.-Y. Lin, "ROUGE", 2004, equal to the `rouge_score` package 0.1.2 with its stemmer; NDCG equal to trec_eval's `ndcg_cut`
(linear gains, discount log2(rank + 1), ideal over all labelled candidates).  Written anew.
Deviation: of a prediction the first 200,000 characters are read, so that runaway output costs no minutes.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import log2

from kvledger.tasks.stem import stem

Golds = tuple[str, ...]
READ = 200_000  # characters of a prediction that are looked at
YES_NO = ("yes", "no", "noanswer")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[a-z0-9]+")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no `a`, `an`, `the`, single spaces. Other quotes and dashes stay."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Golds) -> float:
    """1 if the normalised prediction equals one of the golds."""
    said = normalise(prediction[:READ])
    return float(any(said == normalise(gold) for gold in golds))


def sub_em(prediction: str, golds: Golds) -> float:
    """HELMET's substring EM: 1 if a normalised gold occurs anywhere in the normalised prediction, even inside a word.

    A gold that normalises to nothing ("The A") is found in anything; `answer_in` is the stricter reading.
    """
    said = normalise(prediction[:READ])
    return float(any(normalise(gold) in said for gold in golds))


def answer_in(prediction: str, golds: Golds) -> float:
    """1 if the words of a gold stand in the prediction one after the other; a gold without words must be all of it."""
    said = f" {normalise(prediction[:READ])} "
    return float(
        any(f" {normalise(gold)} " in said if normalise(gold) else prediction[:READ].strip() == gold for gold in golds)
    )


def f1(prediction: str, golds: Golds) -> float:
    """F1 of the bags of normalised words, best over the golds. `yes`, `no` and `noanswer` count whole or not at all."""
    said = normalise(prediction[:READ])
    return max((_word_f1(said, normalise(gold)) for gold in golds), default=0.0)


def _word_f1(said: str, gold: str) -> float:
    if said != gold and (said in YES_NO or gold in YES_NO):
        return 0.0
    ours, theirs = said.split(), gold.split()
    return harmonic(_common(ours, theirs), len(ours), len(theirs))


def _common(ours: Iterable[object], theirs: Iterable[object]) -> int:
    return sum((Counter(ours) & Counter(theirs)).values())


def harmonic(hits: int, predicted: int, wanted: int) -> float:
    """F1 of `hits` among `predicted` and `wanted` things; 0 where there are none."""
    return 2 * hits / (predicted + wanted) if hits else 0.0


# ---- ROUGE ---------------------------------------------------------------------------------------------------------


def rouge_n(prediction: str, golds: Golds, n: int) -> float:
    """ROUGE-n F1 of stemmed words, best over the golds."""
    ours = _grams(tokens(prediction[:READ]), n)
    return max((_gram_f1(ours, _grams(tokens(gold), n)) for gold in golds), default=0.0)


def rouge_1(prediction: str, golds: Golds) -> float:
    return rouge_n(prediction, golds, 1)


def rouge_2(prediction: str, golds: Golds) -> float:
    return rouge_n(prediction, golds, 2)


def rouge_l(prediction: str, golds: Golds) -> float:
    """ROUGE-L F1: longest common subsequence of stemmed words, best over the golds."""
    ours = tokens(prediction[:READ])
    return max((_lcs_f1(ours, tokens(gold)) for gold in golds), default=0.0)


def rouge_lsum(prediction: str, golds: Golds) -> float:
    """ROUGE-Lsum F1: each line of a gold against all lines of the prediction, united; best over the golds."""
    ours = _lines(prediction[:READ])
    return max((_union_f1(ours, _lines(gold)) for gold in golds), default=0.0)


def tokens(text: str) -> list[str]:
    """Runs of ASCII letters and digits in lower case; those of more than three are stemmed."""
    return [stem(word) if len(word) > 3 else word for word in _WORDS.findall(text.lower())]


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _gram_f1(ours: list[tuple[str, ...]], theirs: list[tuple[str, ...]]) -> float:
    return harmonic(_common(ours, theirs), len(ours), len(theirs))


def _lcs_f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return 0.0
    return harmonic(_columns(theirs, ours)[-1].bit_count(), len(ours), len(theirs))


def _columns(rows: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The table of LCS lengths, one integer a column: bit i is set where row i + 1 is longer than row i. One addition a
    column (H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004). The first column is the empty one."""
    where: dict[str, int] = {}
    for i, word in enumerate(rows):
        where[word] = where.get(word, 0) | 1 << i
    full = (1 << len(rows)) - 1
    same, table = full, [0]
    for word in columns:
        if match := same & where.get(word, 0):
            same = ((same + match) | (same - match)) & full
        table.append(full ^ same)
    return table


def _followed(rows: Sequence[str], columns: Sequence[str]) -> set[int]:
    """The rows of one longest common subsequence; ties are broken as in `rouge_score`, which decides what a union holds."""
    table = _columns(rows, columns)
    i, j, taken = len(rows), len(columns), set()
    while i and j:
        if rows[i - 1] == columns[j - 1]:
            i, j = i - 1, j - 1
            taken.add(i)
            continue
        low = (1 << i) - 1
        level = (table[j] & low).bit_count() == (table[j - 1] & low).bit_count()
        if table[j] >> (i - 1) & 1 and level:
            j -= 1
        else:
            i -= 1
    return taken


def _lines(text: str) -> list[list[str]]:
    return [tokens(line) for line in text.split("\n") if line]


def _union_f1(ours: list[list[str]], theirs: list[list[str]]) -> float:
    left = Counter(word for line in ours for word in line)
    right = Counter(word for line in theirs for word in line)
    hits, predicted, wanted = 0, left.total(), right.total()
    for line in theirs:
        for i in sorted(set().union(*(_followed(line, other) for other in ours))):
            if left[line[i]] > 0 and right[line[i]] > 0:  # no word is counted twice
                hits += 1
                left[line[i]] -= 1
                right[line[i]] -= 1
    return harmonic(hits, predicted, wanted)


# ---- rankings ------------------------------------------------------------------------------------------------------


def ranking(prediction: str) -> list[str]:
    """The ids of a ranking, best first, once each, as HELMET reads them: brackets, colons and "id" are dropped, and the
    longest chain `3 > 1 > 2` counts. [] without any digit; of "1, 2, 3" only the first."""
    plain = re.sub(r"[\[\]:]", "", prediction[:READ]).lower().replace("id", "")
    chains = (found.group() for found in re.finditer(r"\d+(?:\s*>\s*\d+)*", plain))
    longest = max(chains, key=len, default="")
    return list(dict.fromkeys(part.strip() for part in longest.split(">") if part.strip()))


def ndcg(ranked: Sequence[str], labels: dict[str, int], k: int = 10) -> float:
    """NDCG@k of ids, best first: gain is the label, unknown ids gain nothing. 0 where no label is positive."""
    ideal = _gain(sorted(labels.values(), reverse=True)[:k])
    return _gain([labels.get(item, 0) for item in ranked[:k]]) / ideal if ideal else 0.0


def _gain(labels: Sequence[int]) -> float:
    return sum(label / log2(rank + 2) for rank, label in enumerate(labels))


# ---- reading an answer ---------------------------------------------------------------------------------------------


def after_cue(prediction: str, cue: str) -> str:
    """HELMET's `parse_output`: the rest of the line after the first `cue` (case ignored), else the first line."""
    prediction = prediction[:READ]
    found = re.search(re.escape(cue), prediction, re.IGNORECASE)
    line = prediction[found.end() if found else 0 :].split("\n", 1)[0].strip()
    return line[len(cue) :].strip() if line.lower().startswith(cue.lower()) else line


def answer_line(prediction: str, cue: str) -> str:
    """What is answered: the first line with text, without the cue. What is rambled on about afterwards is no answer."""
    lines = (line.strip() for line in prediction[:READ].split("\n"))
    line = next((line for line in lines if line and line.lower() != cue.lower()), "")
    return line[len(cue) :].strip() if line.lower().startswith(cue.lower()) else line


def best_reading(metric: Callable[[str, Golds], float], cue: str) -> Callable[[str, Golds], float]:
    """HELMET's rule: the better of the whole output and of what `after_cue` makes of it, the cue glued in front."""

    def score(prediction: str, golds: Golds) -> float:
        whole = cue + prediction
        return max(metric(whole, golds), metric(after_cue(whole, cue), golds))

    return score
