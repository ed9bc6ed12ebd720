"""RepoQA's score: is the function that was written the one that was asked for? (arXiv 2406.06025; SCBench's Code.RepoQA)

The first function of the answer is compared with every function asked of the same repository by BLEU-4; it counts if the
nearest is the one asked for, and near enough (0.8).  Written from the published rule.  SCBench cuts the function out with
tree-sitter; here it is cut by its indentation (Python) or its braces, so a parser for nine languages is not needed.  The
rivals are all functions of the repository in the data, where SCBench takes those that happen to be in the prediction file.
"""

from __future__ import annotations

import math
import re
from collections import Counter

NEAR = 0.8
MOST = 40_000  # characters of an answer that are looked at
Golds = tuple[str, ...]


def passes(prediction: str, golds: Golds) -> float:
    """1 if the function in `prediction` is nearest to golds[0], among golds, and at least `NEAR` to it."""
    said = function_in(prediction).split()
    near = [bleu(said, gold.split()) for gold in golds]
    return float(near[0] >= NEAR and near[0] == max(near))


def function_in(prediction: str) -> str:
    """The first function of the first fenced block, or of the whole text; all of it if no function is seen."""
    text = prediction[:MOST].strip()
    start = text.find("```")
    if start >= 0:
        text = text[start + 3 :].partition("```")[0].partition("\n")[2]
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*(async\s+def|def)\s+\w", line):
            return _indented(lines, number)
    return _braced(text)


def _indented(lines: list[str], number: int) -> str:
    """A Python function with its decorators: as far as the lines are indented deeper than its `def`."""
    depth = len(lines[number]) - len(lines[number].lstrip())
    first = number
    while first and lines[first - 1].lstrip().startswith("@"):
        first -= 1
    stop, open_brackets = number + 1, _balance(lines[number])
    while stop < len(lines):
        line = lines[stop]
        if line.strip() and not open_brackets > 0 and len(line) - len(line.lstrip()) <= depth:
            break
        open_brackets += _balance(line)
        stop += 1
    return "\n".join(lines[first:stop]).rstrip()


def _balance(line: str) -> int:
    return sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")


def _braced(text: str) -> str:
    """Up to the brace that closes the first one."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if character == "}" and depth <= 0:
            return text[: at + 1]
    return text


def bleu(said: list[str], meant: list[str]) -> float:
    """Sentence BLEU-4 against one reference, smoothed by method 4 of Chen and Cherry (2014, k = 5) as NLTK computes it."""
    if not said or not meant:
        return 0.0
    logs, smoothed = 0.0, 0
    for n in range(1, 5):
        ours, theirs = _grams(said, n), _grams(meant, n)
        hits = sum((ours & theirs).values())
        if n == 1 and not hits:
            return 0.0
        value = float(hits)
        if not hits and len(said) > 1:
            smoothed += 1
            value = math.log(len(said)) / (5 * 2**smoothed)
        if value:  # of an answer of one word NLTK leaves the longer grams out
            logs += math.log(value / max(1, sum(ours.values()))) / 4
    brevity = 1.0 if len(said) > len(meant) else math.exp(1 - len(meant) / len(said))
    return brevity * math.exp(logs)


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
